"""Own who gets something about single people from this node, from whom it gets, and its promises.

Values of the configuration file: who is told of a withdrawal and how, whose notices count here,
how long an acknowledgement may take, and how long a model may stay that learned from somebody
who withdrew.
"""

import functools
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from consent import Backoff, IdentityError, PublicIdentity, Purpose, RemedyClocks
from consent.fields import FieldError, Fields

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_Value = TypeVar("_Value")


class HandleMode(StrEnum):
    """How a recipient knows a person."""

    NONE = "none"
    SHARED = "shared"


class OnWithdraw(StrEnum):
    """What a node does with a round during which somebody withdrew."""

    NEXT_BATCH = "next_batch"
    DISCARD_ROUND = "discard_round"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientSettings:
    """Somebody who gets what is derived from this node's people.

    Attributes:
        identity: The recipient's key; only its signature ends a notice. Trusted: whoever can
            edit it decides whose word counts.
        url: Where it is served, such as "https://birch.example"; empty with `HandleMode.NONE`.
        purposes: For which purposes it gets anything.
        handle: `none` when it gets nothing about a single person, as with noised sums: it is
            never told that somebody withdrew. `shared` when data about a person went to it
            under a random name that both sides keep.
        authorities: PEM file of the authorities that its certificate must come from; the
            public ones without it.
    """

    identity: PublicIdentity
    url: str
    purposes: frozenset[Purpose]
    handle: HandleMode = HandleMode.NONE
    authorities: Path | None = None

    def __post_init__(self) -> None:
        if not self.purposes:
            raise ValueError("purposes must name at least one purpose, got none")
        if self.handle is HandleMode.SHARED or self.url:
            _verify_url(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class PropagationSettings:
    """How patiently a recipient is told.

    Attributes:
        ack_within_hours: After so many hours without an acknowledgement there is an alarm;
            1 to 720.
        first_pause_s: Seconds until the second attempt; each pause doubles.
        most_pause_s: The longest pause, seconds; at most a day.
    """

    ack_within_hours: int = 24
    first_pause_s: int = 60
    most_pause_s: int = 3600

    def __post_init__(self) -> None:
        if not 1 <= self.ack_within_hours <= 720:
            raise ValueError(f"ack_within_hours must be 1 to 720, got {self.ack_within_hours}")
        if not 1 <= self.first_pause_s <= self.most_pause_s <= 86_400:
            raise ValueError(
                "first_pause_s must be at least 1, and most_pause_s from it to 86400, got "
                f"{self.first_pause_s} and {self.most_pause_s}"
            )

    @property
    def limit_ms(self) -> int:
        """Age from which a notice is overdue, milliseconds."""
        return self.ack_within_hours * _HOUR_MS

    @property
    def backoff(self) -> Backoff:
        """The pauses between attempts."""
        return Backoff(first_ms=self.first_pause_s * 1000, most_ms=self.most_pause_s * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedySettings:
    """How long a node gives itself for a model that learned from somebody who withdrew.

    Attributes:
        retrain_days: Until a model without them is trained; at least 1.
        retire_days: Until the old one is out of use; not before the other, at most 365.
    """

    retrain_days: int = 21
    retire_days: int = 30

    def __post_init__(self) -> None:
        if not 1 <= self.retrain_days <= self.retire_days <= 365:
            raise ValueError(
                "retrain_days must be at least 1, and retire_days from it to 365, got "
                f"{self.retrain_days} and {self.retire_days}"
            )

    @property
    def clocks(self) -> RemedyClocks:
        """The two clocks."""
        return RemedyClocks(
            retrain_ms=self.retrain_days * _DAY_MS, retire_ms=self.retire_days * _DAY_MS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreading:
    """What the file says about all of it.

    Attributes:
        recipients: Who gets something from here, by name.
        senders: Whose notices count here, by name. Trusted: whoever can edit it decides who
            may withdraw in a person's name.
        propagation: How recipients are told.
        remedy: The two clocks.
        on_withdraw: What happens to a round during which somebody withdrew.
    """

    recipients: Mapping[str, RecipientSettings] = field(default_factory=dict)
    senders: Mapping[str, PublicIdentity] = field(default_factory=dict)
    propagation: PropagationSettings = PropagationSettings()
    remedy: RemedySettings = RemedySettings()
    on_withdraw: OnWithdraw = OnWithdraw.NEXT_BATCH


SPREADING_KEYS = frozenset(Spreading.__dataclass_fields__)


def parse_spreading(document: Mapping[str, object], *, folder: Path) -> Spreading:
    """Read the sections of a parsed `participant.toml`; relative paths start at `folder`.

    Raises:
        ValueError: A key is unknown, missing or of the wrong kind, or a value breaks a rule.
    """
    recipients = _each(document, "recipients", functools.partial(_recipient, folder=folder))
    return Spreading(
        recipients=recipients,
        senders=_each(document, "senders", _sender),
        propagation=_within("propagation", _propagation, document.get("propagation", {})),
        remedy=_within("remedy", _remedy, document.get("remedy", {})),
        on_withdraw=_choice(OnWithdraw, document.get("on_withdraw", "next_batch"), "on_withdraw"),
    )


def format_spreading(spreading: Spreading) -> tuple[str, list[str]]:
    """Write them back: the line of the top level, and the lines of the sections."""
    lines = []
    for name, one in spreading.recipients.items():
        lines += ["", f"[recipients.{_quoted(name)}]", f"vkey = {_quoted(one.identity.format())}"]
        lines += [f"url = {_quoted(one.url)}"] if one.url else []
        lines += [f"purposes = [{', '.join(_quoted(each) for each in sorted(one.purposes))}]"]
        lines += [f"handle = {_quoted(one.handle)}"]
        if one.authorities is not None:
            lines += [f"authorities = {_quoted(str(one.authorities.absolute()))}"]
    for name, key in spreading.senders.items():
        lines += ["", f"[senders.{_quoted(name)}]", f"vkey = {_quoted(key.format())}"]
    for section in ("propagation", "remedy"):
        value = getattr(spreading, section)
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {getattr(value, key)}" for key in type(value).__dataclass_fields__]
    return f"on_withdraw = {_quoted(spreading.on_withdraw)}", lines


def _recipient(name: str, part: Fields, *, folder: Path) -> RecipientSettings:
    named = set(part.keys())
    optional = {key: part.text(key) for key in ("url", "handle", "authorities") if key in named}
    where = f"recipients.{name}"
    handle = _choice(HandleMode, optional.get("handle", "none"), f"handle of {where}")
    authorities = optional.get("authorities")
    return RecipientSettings(
        identity=_identity(name, part.text("vkey")),
        url=optional.get("url", ""),
        purposes=frozenset(
            _choice(Purpose, each, f"purposes of {where}") for each in part.texts("purposes")
        ),
        handle=handle,
        authorities=None if authorities is None else folder / authorities,
    )


def _sender(name: str, part: Fields) -> PublicIdentity:
    return _identity(name, part.text("vkey"))


def _identity(name: str, vkey: str) -> PublicIdentity:
    try:
        identity = PublicIdentity.parse(vkey)
    except IdentityError as error:
        raise ValueError(f"vkey cannot be used: {error}") from error
    if identity.name != name:
        raise ValueError(f"vkey is the key of {identity.name!r}, the table is named {name!r}")
    return identity


def _propagation(part: Fields) -> PropagationSettings:
    return PropagationSettings(**_counts(part, set(PropagationSettings.__dataclass_fields__)))


def _remedy(part: Fields) -> RemedySettings:
    return RemedySettings(**_counts(part, set(RemedySettings.__dataclass_fields__)))


def _counts(part: Fields, known: set[str]) -> dict[str, int]:
    return {key: part.count(key) for key in set(part.keys()) & known}


def _each(
    document: Mapping[str, object], section: str, read: Callable[[str, Fields], _Value]
) -> dict[str, _Value]:
    table = document.get(section, {})
    if not isinstance(table, Mapping):
        raise FieldError(f"{section} must be an object")
    return {
        str(name): _within(f"{section}.{name}", functools.partial(read, str(name)), value)
        for name, value in table.items()
    }


def _within(where: str, read: Callable[[Fields], _Value], value: object) -> _Value:
    try:
        part = Fields(value, where=where)
        found = read(part)
        part.finish()
    except FieldError:
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return found


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(kind: type[_Choice], value: object, where: str) -> _Choice:
    try:
        return kind(str(value))
    except ValueError as error:
        known = ", ".join(kind)
        raise FieldError(f"{where} must be one of {known}, got {str(value)[:40]!r}") from error


def _quoted(text: str) -> str:
    # A JSON string is a TOML string, but for the delete character.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _verify_url(url: str) -> None:
    parts = urlsplit(url)
    is_bare = not (parts.query or parts.fragment or parts.username or parts.password)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
    if not (parts.hostname and is_bare and is_safe):
        raise ValueError(
            "url must be an https address without a query or a login (http on loopback only), "
            f"got {url[:80]!r}"
        )


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
