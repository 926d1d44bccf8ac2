"""Own who answers for a person's data, and what only they can say: whom they give it to, and why.

One controller for everything: notices, receipts, exported records and the register of
processing. What a purpose means, on what it rests and how long its data is kept is the
profile's to say; a brand names its recipients, and may keep data for a shorter time.

Sources: GDPR art. 13, 26, 30, 44 to 49; PIPL art. 17, 20, 23, 30, 38, 39.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from consent.canonical import JsonValue, format_canonical
from consent.fields import Fields
from consent.purpose import Purpose
from consent.wording import Words

_COUNTRY = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?")
_DURATION = re.compile(r"P[1-9][0-9]{0,3}[DMY]")
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
_LINES = ("name", "address", "contact", "email", "phone", "officer", "authority", "notice_url")
_LINE = 300
_PARAGRAPH = 1000


def _check_line(text: str, name: str, *, longest: int = _LINE) -> None:
    # Printable leaves out line breaks and the marks that turn text around.
    if not text.strip() or not text.isprintable() or len(text) > longest:
        raise ValueError(f"{name} must be printable and not empty")


class TransferMechanism(StrEnum):
    """What makes it lawful to send data to another country."""

    ADEQUACY = "adequacy"
    BINDING_RULES = "binding_rules"
    CERTIFICATION = "certification"
    EXEMPTION = "exemption"
    SECURITY_ASSESSMENT = "security_assessment"
    STANDARD_CONTRACT = "standard_contract"


_UNFILED = frozenset({TransferMechanism.ADEQUACY, TransferMechanism.EXEMPTION})


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRecipient:
    """Somebody outside the brand who gets data about people, by name (PIPL 23 and 39).

    Attributes:
        name: As registered.
        contact: How a person reaches them.
        method: What they do with it.
        data: Categories of data that they get.
        country: ISO 3166 code when they are abroad, else None.
        mechanism: Why sending it there is lawful; given exactly when `country` is.
        filing: Number of the contract, certificate or assessment with the authority; may be
            missing for an adequacy decision or an exemption only.
    """

    name: str
    contact: str
    method: str
    data: tuple[str, ...]
    country: str | None = None
    mechanism: TransferMechanism | None = None
    filing: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "contact", "method"):
            _check_line(getattr(self, name), f"the {name} of a recipient")
        if not self.data:
            raise ValueError("a recipient must get at least one category of data")
        for text in self.data:
            _check_line(text, "the data of a recipient")
        if (self.country is None) != (self.mechanism is None):
            raise ValueError("a recipient abroad must have a country and a mechanism, others none")
        if self.country is not None and not _COUNTRY.fullmatch(self.country):
            raise ValueError("the country of a recipient must be an ISO 3166 code")
        if self.filing is not None:
            _check_line(self.filing, "the filing of a recipient")
        elif self.mechanism is not None and self.mechanism not in _UNFILED:
            raise ValueError(f"the mechanism {self.mechanism} must have a filing number")


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeDeclaration:
    """What a brand says about one purpose, beside what the profile says.

    Attributes:
        retention_days: Days until the data is deleted, where it is less than the profile's.
        data_subjects: Categories of people.
        recipients: Who else gets data.
        categories: Sensitive categories that are used.
        necessity: Why nothing less would do; told when data is sensitive (PIPL 30).
        impact: What it can mean for the person; told with it.
    """

    retention_days: int | None = None
    data_subjects: tuple[str, ...] = ("customers",)
    recipients: tuple[NamedRecipient, ...] = ()
    categories: tuple[str, ...] = ()
    necessity: Words | None = None
    impact: Words | None = None

    def __post_init__(self) -> None:
        if self.retention_days is not None and not 0 < self.retention_days < 100_000:
            raise ValueError(f"retention_days must be in [1, 99999], got {self.retention_days}")
        if not self.data_subjects:
            raise ValueError("a purpose must be about at least one category of people")
        for text in (*self.data_subjects, *self.categories):
            _check_line(text, "a category")
        if len({self.necessity is None, self.impact is None, not self.categories}) != 1:
            raise ValueError(
                "sensitive categories must be declared with their necessity and their impact, and "
                "these with no others"
            )


SILENT = PurposeDeclaration()
"""What holds for a purpose of which the brand says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The controller, as a notice, a receipt and the register of processing name it.

    Attributes:
        id: Short name, such as "brand-a.example".
        name: Name as registered.
        address: Postal address on one line.
        country: ISO 3166 code of its seat.
        contact: Desk that answers.
        email: Where that desk is written to.
        phone: Where it is called.
        officer: How the data protection officer is reached.
        authority: Supervisory authority for complaints.
        notice_url: Where the notice can be read again.
        withdraw: How consent is taken back, in plain words.
        withdraw_steps: Steps to take it back; at most `give_steps`.
        give_steps: Steps it took to give it.
        storage_location: ISO 3166 code of the place where data is kept.
        retention: How long data is kept after the end, as ISO 8601, such as "P6M".
        security: General description of the technical and organisational measures.
        joint: Names of joint controllers (GDPR art. 26, PIPL 20).
        purposes: What the brand says about single purposes.
    """

    id: str
    name: str
    address: str
    country: str
    contact: str
    email: str
    phone: str
    officer: str
    authority: str
    notice_url: str
    withdraw: Words
    withdraw_steps: int
    give_steps: int
    storage_location: str
    retention: str
    security: str
    joint: tuple[str, ...] = ()
    purposes: Mapping[Purpose, PurposeDeclaration] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def __post_init__(self) -> None:
        for name in _LINES:
            _check_line(getattr(self, name), f"the {name} of a controller")
        for text in self.joint:
            _check_line(text, "a joint controller")
        _check_line(self.security, "the security of a controller", longest=_PARAGRAPH)
        if not _ID.fullmatch(self.id):
            raise ValueError("the id of a controller must be lower-case letters, digits, '.', '-'")
        for name in ("country", "storage_location"):
            if not _COUNTRY.fullmatch(getattr(self, name)):
                raise ValueError(f"the {name} of a controller must be an ISO 3166 code")
        if not _DURATION.fullmatch(self.retention):
            raise ValueError("the retention of a controller must be an ISO 8601 duration like P6M")
        if not 1 <= self.withdraw_steps <= self.give_steps:
            raise ValueError(
                "taking consent back must not need more steps than giving it: "
                f"{self.withdraw_steps} against {self.give_steps}"
            )

    def on(self, purpose: Purpose) -> PurposeDeclaration:
        """Return what the brand says about a purpose."""
        return self.purposes.get(purpose, SILENT)

    def names_all(self, purpose: Purpose) -> bool:
        """Tell whether everything is named without which a yes would not be an informed one.

        A partner for what is handed to one (PIPL 23), somebody abroad with a mechanism for what
        is sent there (PIPL 39), the reason for what is sensitive (PIPL 30).
        """
        said = self.on(purpose)
        if purpose not in NAMING:
            return True
        if purpose in {Purpose.AUDIENCE_OVERLAP, Purpose.THIRD_PARTY_SHARING}:
            return bool(said.recipients)
        if purpose is Purpose.CROSS_BORDER:
            return any(one.country is not None for one in said.recipients)
        return said.necessity is not None

    def about(self, purposes: Iterable[Purpose]) -> "Controller":
        """Return the same controller with what it says about these purposes and no others."""
        said = {purpose: self.on(purpose) for purpose in sorted(purposes)}
        return replace(
            self, purposes={name: about for name, about in said.items() if about != SILENT}
        )

    def days_kept(self, purpose: Purpose, *, most: int) -> int:
        """Return for how many days data is kept for a purpose: the profile's, or fewer."""
        return min(most, self.on(purpose).retention_days or most)


NAMING = frozenset(
    {
        Purpose.AUDIENCE_OVERLAP,
        Purpose.THIRD_PARTY_SHARING,
        Purpose.CROSS_BORDER,
        Purpose.SENSITIVE,
    }
)
"""Purposes to which nobody can agree before the brand has named who or why."""


def digest_of_controller(controller: Controller) -> str:
    """Return the hex SHA-256 over all that a controller says, as records name it."""
    return hashlib.sha256(format_canonical(format_controller(controller))).hexdigest()


def format_controller(controller: Controller) -> dict[str, JsonValue]:
    """Write a controller as JSON."""
    return {
        "id": controller.id,
        "name": controller.name,
        "address": controller.address,
        "country": controller.country,
        "contact": controller.contact,
        "email": controller.email,
        "phone": controller.phone,
        "officer": controller.officer,
        "authority": controller.authority,
        "notice_url": controller.notice_url,
        "withdraw": _format_words(controller.withdraw),
        "withdraw_steps": controller.withdraw_steps,
        "give_steps": controller.give_steps,
        "storage_location": controller.storage_location,
        "retention": controller.retention,
        "security": controller.security,
        "joint": [*controller.joint],
        "purposes": {
            str(purpose): format_declaration(declared)
            for purpose, declared in controller.purposes.items()
        },
    }


def parse_controller(fields: Fields) -> Controller:
    """Read a controller back.

    Raises:
        ValueError: A field is missing, unknown, of the wrong kind, or breaks a rule.
    """
    said = fields.inner("purposes")
    names = said.keys()
    controller = Controller(
        id=fields.text("id"),
        name=fields.text("name"),
        address=fields.text("address"),
        country=fields.text("country"),
        contact=fields.text("contact"),
        email=fields.text("email"),
        phone=fields.text("phone"),
        officer=fields.text("officer"),
        authority=fields.text("authority"),
        notice_url=fields.text("notice_url"),
        withdraw=_parse_words(fields.inner("withdraw")),
        withdraw_steps=fields.count("withdraw_steps"),
        give_steps=fields.count("give_steps"),
        storage_location=fields.text("storage_location"),
        retention=fields.text("retention"),
        security=fields.text("security"),
        joint=fields.texts("joint"),
        purposes={Purpose(name): parse_declaration(said.inner(name)) for name in names},
    )
    said.finish()
    fields.finish()
    return controller


def format_declaration(declared: PurposeDeclaration) -> dict[str, JsonValue]:
    """Write what a brand says about one purpose as JSON; what it does not say is null."""
    return {
        "retention_days": declared.retention_days,
        "data_subjects": [*declared.data_subjects],
        "recipients": [
            {
                "name": one.name,
                "contact": one.contact,
                "method": one.method,
                "data": [*one.data],
                "country": one.country,
                "mechanism": None if one.mechanism is None else str(one.mechanism),
                "filing": one.filing,
            }
            for one in declared.recipients
        ],
        "categories": [*declared.categories],
        "necessity": None if declared.necessity is None else _format_words(declared.necessity),
        "impact": None if declared.impact is None else _format_words(declared.impact),
    }


def parse_declaration(fields: Fields) -> PurposeDeclaration:
    """Read what a brand says about one purpose.

    Raises:
        ValueError: A field is missing, unknown, of the wrong kind, or breaks a rule.
    """
    declared = PurposeDeclaration(
        retention_days=(
            None if fields.is_null("retention_days") else fields.count("retention_days")
        ),
        data_subjects=fields.texts("data_subjects"),
        recipients=tuple(_parse_recipient(one) for one in fields.each("recipients")),
        categories=fields.texts("categories"),
        necessity=_parse_optional_words(fields, "necessity"),
        impact=_parse_optional_words(fields, "impact"),
    )
    fields.finish()
    return declared


def _parse_recipient(fields: Fields) -> NamedRecipient:
    mechanism = fields.optional_text("mechanism")
    recipient = NamedRecipient(
        name=fields.text("name"),
        contact=fields.text("contact"),
        method=fields.text("method"),
        data=fields.texts("data"),
        country=fields.optional_text("country"),
        mechanism=None if mechanism is None else TransferMechanism(mechanism),
        filing=fields.optional_text("filing"),
    )
    fields.finish()
    return recipient


def _parse_optional_words(fields: Fields, key: str) -> Words | None:
    return None if fields.is_null(key) else _parse_words(fields.inner(key))


def _parse_words(fields: Fields) -> Words:
    words = Words(en=fields.text("en"), zh=fields.text("zh"))
    fields.finish()
    return words


def _format_words(words: Words) -> dict[str, JsonValue]:
    return {"en": words.en, "zh": words.zh}
