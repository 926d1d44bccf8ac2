"""One participant's configuration: a TOML file, read once into one frozen value.

Unknown keys are errors. Secrets are never in the file; they are made in `folder` by the node.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from consent import (
    Controller,
    LadderError,
    Profile,
    Purpose,
    Witnessing,
    packaged_profile,
    parse_address,
    parse_ladder,
)
from participant.approvals import Approvals, format_approvals, parse_approvals
from participant.brand import format_brand, parse_brand, quoted
from participant.partners import SPREADING_KEYS, Spreading, format_spreading, parse_spreading
from privacy import Budget

REQUIRED_COLUMNS = ("customer", "invoice", "item", "quantity", "price", "time")

_PATHS = ("folder", "transactions", "products")
_SECONDS = ("every_s", "max_age_s")
_LONGEST_HANDLE_DAYS = 3650


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
        profile_file: A profile file of the brand's own, which counsel edits; None takes the one
            that comes with the package. Trusted: whoever can edit it decides what people are
            asked, and what counts as their answer.
        budgets: Most that one data subject may lose for each purpose, for good. Trusted:
            whoever can raise it can spend more.
        cohort_floor: Fewest brands this node sums with; at least 3.
        spreading: Whom a withdrawal reaches, and how: the tables `recipients`, `senders`,
            `propagation` and `remedy`, and the key `on_withdraw`.
        witnessing: Who cosigns the node's log while it is served, and how often.
        controller: Who answers for people's data; None issues no receipt and writes no register
            of processing.
        handle_days: Days until a handle that a person gets expires; 1 to 3650.
        store: URL of the PostgreSQL database that holds log and register; None for a SQLite
            file in `folder`. Never holds a password. Trusted: whoever can write there can
            destroy the node's memory, and what they change is noticed.
        approvals: Which plans the node signs without asking a person; None signs none by itself.
            Trusted: whoever can edit it decides what the brand signs.
    """

    name: str
    folder: Path
    transactions: Path
    products: Path
    columns: Mapping[str, str]
    profile: Profile
    budgets: Mapping[Purpose, Budget]
    cohort_floor: int
    spreading: Spreading = field(default_factory=Spreading)
    witnessing: Witnessing = field(default_factory=Witnessing)
    profile_file: Path | None = None
    controller: Controller | None = None
    handle_days: int = 30
    store: str | None = None
    approvals: Approvals | None = None

    def __post_init__(self) -> None:
        allowed = self.name.replace("-", "").isalnum() and self.name == self.name.lower()
        if not allowed or not self.name.isascii() or len(self.name) > 40:
            raise ConfigError(
                f"name must be up to 40 lower-case letters, digits and hyphens, got {self.name!r}"
            )
        if self.cohort_floor < 3:
            raise ConfigError(f"cohort_floor must be at least 3, got {self.cohort_floor}")
        if not 1 <= self.handle_days <= _LONGEST_HANDLE_DAYS:
            raise ConfigError(
                f"handle_days must be in [1, {_LONGEST_HANDLE_DAYS}], got {self.handle_days}"
            )
        _verify_keys("columns", set(self.columns), required=set(REQUIRED_COLUMNS))
        if self.store is not None:
            try:
                parse_address(self.store)
            except ValueError as error:
                raise ConfigError(f"store: {error}") from error
        if not self.budgets:
            raise ConfigError("at least one purpose needs a budget, got none")

    def read_profile(self) -> str:
        """Return the text of the profile file in force.

        Raises:
            ConfigError: It cannot be read.
        """
        if self.profile_file is None:
            return packaged_profile(self.profile)
        try:
            return self.profile_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the profile_file {self.profile_file}") from error


def load(path: Path) -> ParticipantConfig:
    """Read `participant.toml`; relative paths in it start at its own folder.

    Raises:
        ConfigError: the file is missing, is no TOML, or a value breaks a rule.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}); nothing was started") from error
    except (ValueError, RecursionError) as error:
        # Not only TOML's own error: an endless number or nesting ends in these.
        raise ConfigError(f"{path} is no TOML ({error}); nothing was started") from error
    try:
        return _parse(document, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; nothing was started") from error


def format_config(config: ParticipantConfig) -> str:
    """Write a configuration as TOML; `load` reads an equal one back, with absolute paths."""
    paths = {name: str(getattr(config, name).absolute()) for name in _PATHS}
    lines = [f"name = {quoted(config.name)}"]
    lines += [f"{name} = {quoted(path)}" for name, path in paths.items()]
    lines += [
        f"profile = {quoted(config.profile.value)}",
        *(
            [f"profile_file = {quoted(str(config.profile_file.absolute()))}"]
            if config.profile_file is not None
            else []
        ),
        f"cohort_floor = {config.cohort_floor}",
        format_spreading(config.spreading)[0],
        f"handle_days = {config.handle_days}",
        *([] if config.store is None else [f"store = {quoted(config.store)}"]),
        "",
        "[columns]",
        *(f"{name} = {quoted(column)}" for name, column in config.columns.items()),
    ]
    lines += _format_witnessing(config.witnessing)
    for purpose, budget in config.budgets.items():
        lines += ["", f"[budgets.{purpose.value}]"]
        lines += [f"epsilon = {budget.epsilon!r}", f"delta = {budget.delta!r}"]
    if config.approvals is not None:
        lines += format_approvals(config.approvals)
    lines += format_spreading(config.spreading)[1]
    if config.controller is not None:
        lines += format_brand(config.controller)
    return "\n".join(lines) + "\n"


def _parse(document: Mapping[str, object], folder: Path) -> ParticipantConfig:
    _verify_keys(
        "the file",
        set(document),
        required={"name", "folder", "transactions", "products", "columns", "budgets"},
        optional={
            "profile",
            "profile_file",
            "approvals",
            "cohort_floor",
            "controller",
            "handle_days",
            "store",
            "witnessing",
            *SPREADING_KEYS,
        },
    )
    try:
        spreading = parse_spreading(document, folder=folder)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    columns = _table(document["columns"], "columns")
    budgets = _table(document["budgets"], "budgets")
    config = ParticipantConfig(
        name=_text(document["name"], "name"),
        folder=folder / _text(document["folder"], "folder"),
        transactions=folder / _text(document["transactions"], "transactions"),
        products=folder / _text(document["products"], "products"),
        columns={name: _text(column, f"columns.{name}") for name, column in columns.items()},
        profile=_profile(document.get("profile", Profile.EU_GDPR.value)),
        budgets={_purpose(name): _budget(name, value) for name, value in budgets.items()},
        cohort_floor=_integer(document.get("cohort_floor", 3), "cohort_floor"),
        spreading=spreading,
        witnessing=_witnessing(_table(document.get("witnessing", {}), "witnessing"), folder),
        profile_file=(
            folder / _text(document["profile_file"], "profile_file")
            if "profile_file" in document
            else None
        ),
        controller=_controller(document["controller"]) if "controller" in document else None,
        handle_days=_integer(document.get("handle_days", 30), "handle_days"),
        store=_text(document["store"], "store") if "store" in document else None,
        approvals=_approvals(document["approvals"]) if "approvals" in document else None,
    )
    if config.profile_file is None:
        return config
    return _with_own_profile(config, said="profile" in document)


def _witnessing(table: Mapping[str, object], folder: Path) -> Witnessing:
    _verify_keys("witnessing", set(table), required=set(), optional={"policy", *_SECONDS})
    policy = table.get("policy")
    seconds = {name: table[name] for name in _SECONDS if name in table}
    for name, value in seconds.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"witnessing.{name} must be a positive integer, got {value!r}")
    try:
        return Witnessing(
            policy=None if policy is None else folder / _text(policy, "witnessing.policy"),
            **{name: int(str(value)) for name, value in seconds.items()},
        )
    except ValueError as error:
        raise ConfigError(f"witnessing: {error}") from error


def _format_witnessing(witnessing: Witnessing) -> list[str]:
    lines = [f"{name} = {getattr(witnessing, name)}" for name in _SECONDS]
    if witnessing.policy is not None:
        lines.insert(0, f"policy = {quoted(str(witnessing.policy.absolute()))}")
    return ["", "[witnessing]", *lines]


def _with_own_profile(config: ParticipantConfig, *, said: bool) -> ParticipantConfig:
    """Take the law from the brand's own profile file, and refuse one that contradicts it."""
    try:
        found = parse_ladder(config.read_profile()).profile
    except LadderError as error:
        raise ConfigError(f"profile_file: {error}") from error
    if said and found is not config.profile:
        raise ConfigError(f"profile is {config.profile}, the profile_file is for {found}")
    return replace(config, profile=found)


def _approvals(value: object) -> Approvals:
    try:
        return parse_approvals(_table(value, "approvals"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"approvals: {error}") from error


def _controller(value: object) -> Controller:
    try:
        return parse_brand(value)
    except ValueError as error:
        raise ConfigError(f"controller: {error}") from error


def _integer(value: object, where: str) -> int:
    if type(value) is not int:  # In Python `true` would be one.
        raise ConfigError(f"{where} must be an integer, got {value!r}")
    return value


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
