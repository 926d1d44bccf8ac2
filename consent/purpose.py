"""Read what counsel wrote about each purpose: one TOML file for each profile.

A file is read whole or refused whole: an unknown key, a purpose that is missing, a bit that
moved or a rule that contradicts another is one error that names the place. The files that come
with the package are in `consent/profiles`.
"""

import functools
import hashlib
import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

from consent.canonical import CanonicalError, JsonValue, format_canonical
from consent.ladder import (
    AgeBand,
    Basis,
    Clocks,
    ClockUnit,
    EssentialTerms,
    Ladder,
    Period,
    Profile,
    Purpose,
    PurposeRules,
    Tier,
)

__all__ = [
    "AgeBand",
    "Basis",
    "Ladder",
    "LadderError",
    "Profile",
    "Purpose",
    "PurposeRules",
    "Tier",
    "is_separate",
    "ladder_of",
    "load_ladder",
    "packaged_profile",
    "parse_ladder",
    "policy_digest",
    "preset",
]

_Table: TypeAlias = Mapping[str, object]
_Word = TypeVar("_Word", bound=StrEnum)

_NO_TIER = "none"
_HEX = set("0123456789abcdef")
_AGES = tuple(band.youngest for band in AgeBand if band.youngest)


class LadderError(ValueError):
    """A profile file breaks a rule; nothing of it is used."""


def ladder_of(profile: Profile) -> Ladder:
    """Return the profile that comes with the package."""
    return _packaged(profile)


def packaged_profile(profile: Profile) -> str:
    """Return the text of the profile file that comes with the package."""
    return (
        resources.files("consent")
        .joinpath("profiles", f"{profile}.toml")
        .read_text(encoding="utf-8")
    )


def load_ladder(path: Path) -> Ladder:
    """Read a profile file.

    Raises:
        LadderError: The file cannot be read or breaks a rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LadderError(f"the profile {path} could not be read ({error})") from error
    return parse_ladder(text)


def parse_ladder(text: str) -> Ladder:
    """Read the text of a profile file.

    Raises:
        LadderError: The text is no TOML or breaks a rule; the message names the place.
    """
    try:
        document: _Table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only the decoder's own error: an integer of thousands of digits is another one.
        raise LadderError(f"the profile could not be read as TOML ({error})") from error
    _check_keys(
        "the profile",
        document,
        ("profile", "children", "asking", "clocks", "words", "essential", "purposes"),
    )
    head = _table(document, "profile", keys=("name", "jurisdiction", "bases"))
    children = _table(document, "children", keys=("age_of_consent", "guardian_en", "guardian_zh"))
    asking = _table(document, "asking", keys=("no_asking_days",))
    bases = frozenset(_one_of(Basis, name, at="profile.bases") for name in _texts(head, "bases"))
    if Basis.CONTRACT in bases or Basis.CONSENT not in bases:
        raise LadderError("profile.bases must hold consent and must not hold contract")
    age = _count(children, "age_of_consent")
    if age not in _AGES:
        raise LadderError(f"children.age_of_consent must be one of {list(_AGES)}, got {age}")
    essential, rules = _essential(document), _all_rules(document, bases=bases)
    return Ladder(
        profile=_one_of(Profile, _text(head, "name"), at="profile.name"),
        jurisdiction=_text(head, "jurisdiction"),
        age_of_consent=age,
        guardian_rule=_languages(children, "guardian_en", "guardian_zh"),
        no_asking_days=_count(asking, "no_asking_days"),
        clocks=_clocks(document),
        bases=bases,
        essential=essential,
        rules=rules,
        words=_words(document, said=(*essential.values(), *rules.values())),
        digest=_digest(document),
    )


def preset(tier: Tier, *, profile: Profile) -> frozenset[Purpose]:
    """Return the purposes that choosing a tier shows switched on, never a separate one."""
    return ladder_of(profile).preset(tier)


def is_separate(purpose: Purpose, *, profile: Profile) -> bool:
    """Tell whether a purpose needs an act of its own under a profile."""
    return ladder_of(profile).rules[purpose].separate


def policy_digest(profile: Profile | Ladder) -> str:
    """Return the hex SHA-256 of all that a profile file says, as permits name it."""
    return (profile if isinstance(profile, Ladder) else ladder_of(profile)).digest


@functools.cache
def _packaged(profile: Profile) -> Ladder:
    return parse_ladder(packaged_profile(profile))


def _all_rules(document: _Table, *, bases: frozenset[Basis]) -> Mapping[Purpose, PurposeRules]:
    purposes = _table(document, "purposes", keys=tuple(str(purpose) for purpose in Purpose))
    rules = {purpose: _rules(purposes, purpose, bases=bases) for purpose in Purpose}
    for purpose, known in rules.items():
        for needed in known.prerequisites:
            if needed.bit >= purpose.bit:
                raise LadderError(
                    f"purposes.{purpose}.prerequisites must have lower bits, {needed} has not"
                )
            if known.tier is not None and not _is_offered_with(rules[needed].tier, known.tier):
                raise LadderError(
                    f"purposes.{purpose} is offered by a tier that does not offer {needed}, "
                    "which it needs"
                )
    return MappingProxyType(rules)


def _rules(purposes: _Table, purpose: Purpose, *, bases: frozenset[Basis]) -> PurposeRules:
    at = f"purposes.{purpose}"
    table = _table(
        purposes,
        str(purpose),
        keys=(
            *("bit", "tier", "allowed", "separate", "basis", "prerequisites", "data"),
            *("recipients", "method", "retention_days", "assessment", "articles"),
            *("accepted_terms", "en", "zh"),
        ),
        at=at,
    )
    if table["bit"] != purpose.bit or isinstance(table["bit"], bool):
        raise LadderError(f"{at}.bit must be {purpose.bit} for good, got {table['bit']}")
    tier, separate = _text(table, "tier", at=at), _flag(table, "separate", at=at)
    basis = _one_of(Basis, _text(table, "basis", at=at), at=f"{at}.basis")
    if basis not in bases:
        raise LadderError(f"{at}.basis must be one of profile.bases, got {basis}")
    if separate and basis is not Basis.CONSENT:
        raise LadderError(f"{at} is separate and must rest on consent, not on {basis}")
    if tier == _NO_TIER and not separate:
        raise LadderError(f"{at} is in no tier and must be separate")
    accepted = _texts(table, "accepted_terms", at=at, empty=True)
    if any(len(digest) != 32 or not set(digest) <= _HEX for digest in accepted):
        raise LadderError(f"{at}.accepted_terms must be digests of 32 lower-case hex digits")
    return PurposeRules(
        purpose=purpose,
        description=_languages(table, "en", "zh", at=at),
        tier=None if tier == _NO_TIER else _one_of(Tier, tier, at=f"{at}.tier"),
        allowed=_flag(table, "allowed", at=at),
        separate=separate,
        basis=basis,
        prerequisites=frozenset(
            _one_of(Purpose, name, at=f"{at}.prerequisites")
            for name in _texts(table, "prerequisites", at=at, empty=True)
        ),
        data=_texts(table, "data", at=at),
        recipients=_texts(table, "recipients", at=at),
        method=_text(table, "method", at=at),
        retention_days=_count(table, "retention_days", at=at),
        assessment=_flag(table, "assessment", at=at),
        articles=_texts(table, "articles", at=at),
        accepted_terms=frozenset(accepted),
    )


def _is_offered_with(needed: Tier | None, tier: Tier) -> bool:
    tiers = list(Tier)
    return needed is not None and tiers.index(needed) <= tiers.index(tier)


def _essential(document: _Table) -> Mapping[str, EssentialTerms]:
    essential = document["essential"]
    if not isinstance(essential, dict) or not essential:
        raise LadderError("essential must be a table of at least one service")
    services = {}
    for name in essential:
        at = f"essential.{name}"
        table = _table(
            essential,
            name,
            keys=("basis", "data", "recipients", "retention_days", "articles", "en", "zh"),
            at=at,
        )
        basis = _one_of(Basis, _text(table, "basis", at=at), at=f"{at}.basis")
        if name in set(Purpose) or basis is not Basis.CONTRACT:
            raise LadderError(f"{at} must rest on the contract and be no purpose of the ladder")
        services[name] = EssentialTerms(
            description=_languages(table, "en", "zh", at=at),
            basis=basis,
            data=_texts(table, "data", at=at),
            recipients=_texts(table, "recipients", at=at),
            retention_days=_count(table, "retention_days", at=at),
            articles=_texts(table, "articles", at=at),
        )
    return MappingProxyType(services)


def _words(
    document: _Table, *, said: tuple[EssentialTerms | PurposeRules, ...]
) -> Mapping[str, str]:
    table = document["words"]
    if not isinstance(table, dict):
        raise LadderError("words must be a table")
    words = {english: _text(table, english, at="words") for english in table}
    for terms in said:
        for english in (*terms.data, *terms.recipients):
            if english not in words:
                raise LadderError(f"words must say {english!r} in Chinese too")
    return MappingProxyType(words)


def _clocks(document: _Table) -> Clocks:
    table = _table(document, "clocks", keys=("answer", "extension", "breach"))
    periods = {}
    for name in ("answer", "extension", "breach"):
        at = f"clocks.{name}"
        period = _table(table, name, keys=("count", "unit"), at=at)
        unit = _one_of(ClockUnit, _text(period, "unit", at=at), at=f"{at}.unit")
        periods[name] = Period(count=_count(period, "count", at=at), unit=unit)
    return Clocks(**periods)


def _digest(document: _Table) -> str:
    content = cast("JsonValue", json.loads(json.dumps(document)))
    try:
        return hashlib.sha256(format_canonical(content)).hexdigest()
    except CanonicalError as error:
        raise LadderError(f"the profile holds text in an unusual spelling ({error})") from error


def _check_keys(at: str, table: _Table, keys: tuple[str, ...]) -> None:
    unknown, missing = sorted(set(table) - set(keys)), sorted(set(keys) - set(table))
    if unknown:
        raise LadderError(f"{at} has keys that nobody knows: {', '.join(unknown)}")
    if missing:
        raise LadderError(f"{at} has no {', '.join(missing)}")


def _table(parent: _Table, name: str, *, keys: tuple[str, ...], at: str | None = None) -> _Table:
    table = parent[name]
    if not isinstance(table, dict):
        raise LadderError(f"{at or name} must be a table")
    _check_keys(at or name, table, keys)
    return table


def _text(table: _Table, key: str, *, at: str | None = None) -> str:
    value = table[key]
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise LadderError(f"{at + '.' if at else ''}{key} must be a line that says something")
    return value


def _texts(
    table: _Table, key: str, *, at: str | None = None, empty: bool = False
) -> tuple[str, ...]:
    value, place = table[key], f"{at + '.' if at else ''}{key}"
    if not (isinstance(value, list) and all(isinstance(text, str) and text for text in value)):
        raise LadderError(f"{place} must be a list of texts")
    if len(set(value)) != len(value) or not (value or empty):
        raise LadderError(f"{place} must not be empty or say a thing twice")
    return tuple(value)


def _flag(table: _Table, key: str, *, at: str) -> bool:
    value = table[key]
    if not isinstance(value, bool):
        raise LadderError(f"{at}.{key} must be true or false")
    return value


def _count(table: _Table, key: str, *, at: str | None = None) -> int:
    value = table[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 100_000:
        raise LadderError(f"{at + '.' if at else ''}{key} must be a number from 0 to 99999")
    return value


def _languages(table: _Table, en: str, zh: str, *, at: str | None = None) -> Mapping[str, str]:
    return MappingProxyType({"en": _text(table, en, at=at), "zh-CN": _text(table, zh, at=at)})


def _one_of(kind: type[_Word], name: str, *, at: str) -> _Word:
    try:
        return kind(name)
    except ValueError as error:
        known = ", ".join(kind)
        raise LadderError(f"{at} must be one of {known}, got {name!r}") from error
