"""Own how a choice was made: by which act, on which screen, with whose help, on whose word.

It is evidence for a regulator and never a permission: whatever stands here, the same purposes
are given. Nothing here names a person; a guardian and an operator are references into the
brand's own files.

Sources: ISO/IEC TS 27560 on events and notices; GDPR art. 7(1) and 8(2); PIPL art. 14, 31, 69.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from consent.canonical import JsonValue
from consent.fields import Fields

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECORD = re.compile(r"[0-9a-f]{32}")
_REFERENCE = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_VERSION = re.compile(r"[A-Za-z0-9._+-]{1,60}")


class ActKind(StrEnum):
    """What a person did to say it; silence and a box that was ticked before are no act."""

    BUTTON = "button"
    SIGNATURE = "signature"
    SPOKEN = "spoken"
    SWITCH = "switch"
    TICK = "tick"
    WRITTEN = "written"


class Source(StrEnum):
    """Where the node has an act from."""

    PERSON = "person"
    SYSTEM = "system"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """The screen or form that a person saw.

    Attributes:
        version: Of the app or the form.
        sha256: 64 hex digits over what was shown, as the brand keeps it.
    """

    version: str
    sha256: str

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise ValueError("the version of a screen must be up to 60 letters, digits and . _ + -")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("the sha256 of a screen must be 64 lower-case hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """How one choice was made; None is "nobody told".

    Attributes:
        source: Where the node has it from.
        act: What the person did.
        screen: What they saw.
        shown_at: When the notice was shown, epoch milliseconds.
        operator: Account of the member of staff who helped.
        guardian: Where the guardian's verification is filed; never a name.
        controller: Digest of who answered for the data at that time, `digest_of_controller`.
        supersedes: Record that this one takes the place of, 32 hex digits.
    """

    source: Source = Source.PERSON
    act: ActKind | None = None
    screen: Screen | None = None
    shown_at: int | None = None
    operator: str | None = None
    guardian: str | None = None
    controller: str | None = None
    supersedes: str | None = None

    def __post_init__(self) -> None:
        for field in ("operator", "guardian"):
            text: str | None = getattr(self, field)
            if text is not None and not _REFERENCE.fullmatch(text):
                raise ValueError(
                    f"the {field} of an act must be an opaque reference: letters, digits and "
                    ". _ : / - only"
                )
        if self.controller is not None and not _SHA256.fullmatch(self.controller):
            raise ValueError("the controller of an act must be a digest of 64 hex digits")
        if self.supersedes is not None and not _RECORD.fullmatch(self.supersedes):
            raise ValueError("the record that is superseded must be named by 32 hex digits")
        if self.shown_at is not None and self.shown_at < 0:
            raise ValueError("a notice must not be shown before 1970")


NOTHING_TOLD = Circumstances()


def format_circumstances(told: Circumstances) -> dict[str, JsonValue]:
    """Write the circumstances as JSON; what nobody told is null."""
    screen = told.screen
    return {
        "source": str(told.source),
        "act": None if told.act is None else str(told.act),
        "screen": None if screen is None else {"version": screen.version, "sha256": screen.sha256},
        "shown_at": told.shown_at,
        "operator": told.operator,
        "guardian": told.guardian,
        "controller": told.controller,
        "supersedes": told.supersedes,
    }


def parse_circumstances(fields: Fields) -> Circumstances:
    """Read the circumstances back.

    Raises:
        ValueError: A field is missing, unknown, of the wrong kind, or breaks a rule.
    """
    act, screen = fields.optional_text("act"), None
    if not fields.is_null("screen"):
        shown = fields.inner("screen")
        screen = Screen(version=shown.text("version"), sha256=shown.text("sha256"))
        shown.finish()
    told = Circumstances(
        source=Source(fields.text("source")),
        act=None if act is None else ActKind(act),
        screen=screen,
        shown_at=None if fields.is_null("shown_at") else fields.count("shown_at"),
        operator=fields.optional_text("operator"),
        guardian=fields.optional_text("guardian"),
        controller=fields.optional_text("controller"),
        supersedes=fields.optional_text("supersedes"),
    )
    fields.finish()
    return told
