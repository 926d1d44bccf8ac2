"""Read a consent record back from the event that was sealed for it.

The register writes the event and keeps no copy: whoever needs the record, for a receipt or an
export, opens the entry and reads it here. After an erasure nothing can be opened.
"""

from collections.abc import Mapping

from consent.canonical import JsonValue
from consent.circumstances import NOTHING_TOLD, parse_circumstances
from consent.event import LogError
from consent.fields import Fields
from consent.fold import RECORDED, RENEWED
from consent.ladder import AgeBand, Profile, Purpose, Tier
from consent.register import ConsentRecord, Notice
from consent.sealed import SubjectRef


def is_record(event: Mapping[str, JsonValue]) -> bool:
    """Tell whether an event holds a record."""
    return event.get("type") in {RECORDED, RENEWED}


def read_record(event: Mapping[str, JsonValue], *, index: int) -> ConsentRecord:
    """Return the record of an event `consent.recorded` or `consent.renewed`.

    Args:
        event: The event as it was sealed.
        index: Its entry.

    Raises:
        LogError: The event is another one, or a field is missing or of the wrong kind.
    """
    try:
        if not is_record(event):
            raise ValueError("it is of another type")
        return _read(Fields(event, where="the event"), event, index=index)
    except ValueError as error:
        raise LogError(f"entry {index} holds no consent record ({error})", index=index) from error


def _read(fields: Fields, event: Mapping[str, JsonValue], *, index: int) -> ConsentRecord:
    notice, terms = fields.inner("notice"), fields.inner("terms")
    tier = fields.optional_text("tier") if "tier" in event else None
    age = fields.optional_text("age") if "age" in event else None
    return ConsentRecord(
        record_id=fields.text("record"),
        subject_ref=SubjectRef(fields.text("subject")),
        given=frozenset(Purpose(name) for name in fields.texts("given")),
        refused=frozenset(Purpose(name) for name in fields.texts("refused")),
        notice=Notice(
            id=notice.text("id"),
            version=notice.count("version"),
            language=notice.text("language"),
            sha256=notice.text("sha256"),
        ),
        channel=fields.text("channel"),
        profile=Profile(fields.text("profile")),
        expressed_at=fields.count("expressed_at"),
        effective_at=fields.count("at"),
        until=fields.count("until"),
        tier=None if tier is None else Tier(tier),
        separate=fields.flag("separate"),
        terms={Purpose(name): terms.text(name) for name in terms.keys()},  # noqa: SIM118
        age=None if age is None else AgeBand(age),
        index=index,
        policy=fields.text("policy") if "policy" in event else "",
        circumstances=(
            parse_circumstances(fields.inner("circumstances"))
            if "circumstances" in event
            else NOTHING_TOLD
        ),
    )
