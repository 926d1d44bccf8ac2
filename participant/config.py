"""One participant's configuration: a TOML file, read once into one frozen value.

Unknown keys are errors. Secrets are never in the file; they are made in `folder` by the node.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from consent import Profile, Purpose, parse_address
from privacy import Budget

REQUIRED_COLUMNS = ("customer", "invoice", "item", "quantity", "price", "time")

_PATHS = ("folder", "transactions", "products")


class ConfigError(ValueError):
    """The configuration breaks a rule; nothing was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantConfig:
    """Everything a brand decides about its node.

    Attributes:
        name: The node's name in the consortium; lower-case letters, digits and hyphens.
        folder: The node's own state: keys, ledger, log. Trusted: whoever can write here can
            sign for the brand, and whoever can read here can read its keys.
        transactions: The brand's invoice lines, CSV or Parquet. Trusted and secret: raw
            customer data, which only this node's process opens.
        products: The public catalogue, CSV or Parquet with columns stock_code and
            description. Public, but its digest is part of each plan.
        columns: Which column of `transactions` holds each of `REQUIRED_COLUMNS`.
        profile: Law whose rules for consent apply.
        budgets: Most that one data subject may lose for each purpose, for good. Trusted:
            whoever can raise it can spend more.
        cohort_floor: Fewest brands this node sums with; at least 3.
        store: URL of the PostgreSQL database that holds log and register; None for a SQLite
            file in `folder`. Never holds a password. Trusted: whoever can write there can
            destroy the node's memory, and what they change is noticed.
    """

    name: str
    folder: Path
    transactions: Path
    products: Path
    columns: Mapping[str, str]
    profile: Profile
    budgets: Mapping[Purpose, Budget]
    cohort_floor: int
    store: str | None = None

    def __post_init__(self) -> None:
        allowed = self.name.replace("-", "").isalnum() and self.name == self.name.lower()
        if not allowed or not self.name.isascii() or len(self.name) > 40:
            raise ConfigError(
                f"name must be up to 40 lower-case letters, digits and hyphens, got {self.name!r}"
            )
        if self.cohort_floor < 3:
            raise ConfigError(f"cohort_floor must be at least 3, got {self.cohort_floor}")
        _verify_keys("columns", set(self.columns), required=set(REQUIRED_COLUMNS))
        if self.store is not None:
            try:
                parse_address(self.store)
            except ValueError as error:
                raise ConfigError(f"store: {error}") from error
        if not self.budgets:
            raise ConfigError("at least one purpose needs a budget, got none")


def load(path: Path) -> ParticipantConfig:
    """Read `participant.toml`; relative paths in it start at its own folder.

    Raises:
        ConfigError: the file is missing, is no TOML, or a value breaks a rule.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}); nothing was started") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML ({error}); nothing was started") from error
    try:
        return _parse(document, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; nothing was started") from error


def format_config(config: ParticipantConfig) -> str:
    """Write a configuration as TOML; `load` reads an equal one back, with absolute paths."""
    paths = {name: str(getattr(config, name).absolute()) for name in _PATHS}
    lines = [f"name = {_quoted(config.name)}"]
    lines += [f"{name} = {_quoted(path)}" for name, path in paths.items()]
    lines += [
        f"profile = {_quoted(config.profile.value)}",
        f"cohort_floor = {config.cohort_floor}",
        *([] if config.store is None else [f"store = {_quoted(config.store)}"]),
        "",
        "[columns]",
        *(f"{name} = {_quoted(column)}" for name, column in config.columns.items()),
    ]
    for purpose, budget in config.budgets.items():
        lines += ["", f"[budgets.{purpose.value}]"]
        lines += [f"epsilon = {budget.epsilon!r}", f"delta = {budget.delta!r}"]
    return "\n".join(lines) + "\n"


def _parse(document: Mapping[str, object], folder: Path) -> ParticipantConfig:
    _verify_keys(
        "the file",
        set(document),
        required={"name", "folder", "transactions", "products", "columns", "budgets"},
        optional={"profile", "cohort_floor", "store"},
    )
    cohort_floor = document.get("cohort_floor", 3)
    if type(cohort_floor) is not int:  # In Python `true` would be one.
        raise ConfigError(f"cohort_floor must be an integer, got {cohort_floor!r}")
    columns = _table(document["columns"], "columns")
    budgets = _table(document["budgets"], "budgets")
    return ParticipantConfig(
        name=_text(document["name"], "name"),
        folder=folder / _text(document["folder"], "folder"),
        transactions=folder / _text(document["transactions"], "transactions"),
        products=folder / _text(document["products"], "products"),
        columns={name: _text(column, f"columns.{name}") for name, column in columns.items()},
        profile=_profile(document.get("profile", Profile.EU_GDPR.value)),
        budgets={_purpose(name): _budget(name, value) for name, value in budgets.items()},
        cohort_floor=cohort_floor,
        store=_text(document["store"], "store") if "store" in document else None,
    )


def _quoted(text: str) -> str:
    # A JSON string is a TOML string, but for surrogate pairs and the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _budget(purpose: str, value: object) -> Budget:
    where = f"budgets.{purpose}"
    table = _table(value, where)
    _verify_keys(where, set(table), required={"epsilon", "delta"})
    epsilon, delta = (_number(table[name], f"{where}.{name}") for name in ("epsilon", "delta"))
    try:
        return Budget(epsilon=epsilon, delta=delta)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _purpose(name: str) -> Purpose:
    try:
        return Purpose(name)
    except ValueError as error:
        known = ", ".join(purpose.value for purpose in Purpose)
        raise ConfigError(f"budgets names no purpose: {name!r} (known: {known})") from error


def _profile(value: object) -> Profile:
    try:
        return Profile(_text(value, "profile"))
    except ValueError as error:
        known = ", ".join(profile.value for profile in Profile)
        raise ConfigError(f"profile must be one of {known}, got {value!r}") from error


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table, got {value!r}")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} must be text, got {value!r}")
    return value


def _verify_keys(
    where: str, found: set[str], *, required: set[str], optional: set[str] | None = None
) -> None:
    missing = sorted(required - found)
    unknown = sorted(found - required - (optional or set()))
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    if unknown:
        raise ConfigError(f"{where} has unknown keys: {', '.join(unknown)}")
