"""Trace a withdrawal to the models that learned from the person, with a remedy and two clocks.

What was computed before a withdrawal stays lawful (GDPR art. 7(3), PIPL art. 15); the person is
left out from the next batch on. A model that learned from them gets two clocks: until when one
without them must be trained, and until when the old one must be out of use. That a person is
removed from a trained model is claimed nowhere. Who is behind a clock is never written down.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from consent.canonical import JsonValue
from consent.event import LogError
from consent.log import Log
from consent.topic import Topic

OPENED, CLOSED = "remedy.opened", "remedy.closed"
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000


class RemedyError(Exception):
    """A clock cannot be closed as asked."""


class Remedy(StrEnum):
    """What is to be done about a model."""

    NONE = "none"
    RETRAIN = "retrain"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyClocks:
    """How long a node gives itself, counted from a withdrawal; its choice, not a law's number.

    Attributes:
        retrain_ms: Until a model without the person is trained.
        retire_ms: Until the model with the person is out of use; not before the other.
    """

    retrain_ms: int = 21 * _DAY_MS
    retire_ms: int = 30 * _DAY_MS

    def __post_init__(self) -> None:
        if not _DAY_MS <= self.retrain_ms <= self.retire_ms:
            raise ValueError("a model must be retrained after a day or more, and before it retires")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A released model and what it was made of.

    Attributes:
        version: Its name.
        rounds: The (run, round) pairs whose updates are in it.
        parents: Versions that it was trained on from; what they learned is in it as well.
        retired_at: When it went out of use, epoch milliseconds; None while it is in use.
    """

    version: str
    rounds: frozenset[tuple[str, int]]
    parents: frozenset[str] = frozenset()
    retired_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedModel:
    """A model version that learned from the person.

    Attributes:
        version: Its name.
        remedy: What is to be done at the time that was asked about.
        retrain_by: End of the first clock, epoch milliseconds, the start of a UTC day.
        retire_by: End of the second clock.
    """

    version: str
    remedy: Remedy
    retrain_by: int
    retire_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a person's data went inside the node; it is about a person, so keep it there.

    Attributes:
        runs: Runs that used the person, sorted.
        rounds: The (run, round) pairs that did, sorted.
        models: Model versions that learned from them, in the order they were given.
    """

    runs: tuple[str, ...]
    rounds: tuple[tuple[str, int], ...]
    models: tuple[AffectedModel, ...]


def trace(
    uses: Iterable[tuple[str, int]],
    models: Iterable[ModelVersion],
    *,
    withdrawn_at: int,
    clocks: RemedyClocks,
    at: int,
) -> Lineage:
    """Tell which runs, rounds and model versions used a person, and what is to be done.

    Args:
        uses: The (run, round) of every training permit that included the person:
            `(permit.use.run, permit.use.round)` over `Gate.uses_of`.
        models: All released versions.
        withdrawn_at: When the person withdrew, epoch milliseconds.
        clocks: How long the node gives itself.
        at: The time that is asked about.

    Raises:
        ValueError: Two versions have one name, or a parent is not given: what it learned would
            be overlooked.
    """
    used, known = frozenset(uses), list(models)
    named = {model.version: model for model in known}
    if len(named) != len(known):
        raise ValueError("every model version must have a name of its own")
    for model in known:
        missing = model.parents - named.keys()
        if missing:
            raise ValueError(f"{model.version} was trained on from {min(missing)}, not given")
    affected = {name for name, model in named.items() if model.rounds & used}
    grown = True
    while grown:
        children = {m.version for m in known if m.parents & affected} - affected
        grown, affected = bool(children), affected | children
    # Rounded down, so that a clock does not tell the second of a withdrawal.
    retrain_by = _day(withdrawn_at + clocks.retrain_ms)
    retire_by = _day(withdrawn_at + clocks.retire_ms)
    return Lineage(
        runs=tuple(sorted({run for run, _ in used})),
        rounds=tuple(sorted(used)),
        models=tuple(
            AffectedModel(
                version=model.version,
                remedy=_remedy(model, retire_by=retire_by, at=at),
                retrain_by=retrain_by,
                retire_by=retire_by,
            )
            for model in known
            if model.version in affected
        ),
    )


class Remedies:
    """The clocks of the model versions of one node."""

    def __init__(self, log: Log) -> None:
        """Keep clocks in a log, one pair a model whatever the number of withdrawals."""
        self._log = log
        self._topic = Topic(log, (OPENED, CLOSED))

    def open(self, lineage: Lineage, *, at: int) -> list[str]:
        """Start the clocks of the models that need a remedy; one that runs is never put off.

        Returns:
            The versions whose clocks began to run now.
        """
        begun = []
        with self._log.transaction():
            running = self._replay()
            for model in lineage.models:
                if model.remedy is not Remedy.NONE and model.version not in running:
                    event: dict[str, JsonValue] = {
                        "type": OPENED,
                        "v": 1,
                        "at": at - at % _MINUTE_MS,
                        "model": model.version,
                        "retrain_by": model.retrain_by,
                        "retire_by": model.retire_by,
                    }
                    self._topic.append(event)
                    begun.append(model.version)
        return begun

    def running(self, *, at: int) -> list[AffectedModel]:
        """Return the models whose clocks run, with what is to be done at a time."""
        return [
            AffectedModel(
                version=version,
                remedy=Remedy.RETIRE if at >= retire_by else Remedy.RETRAIN,
                retrain_by=retrain_by,
                retire_by=retire_by,
            )
            for version, (retrain_by, retire_by) in self._replay().items()
        ]

    def overdue(self, *, at: int) -> list[AffectedModel]:
        """Return the models whose first or second clock has run out."""
        return [model for model in self.running(at=at) if at >= model.retrain_by]

    def close(self, version: str, *, replaced_by: str, at: int) -> None:
        """Write down that a model is out of use.

        Args:
            version: The model whose clocks stop.
            replaced_by: The version that was trained without the people; empty for none.
            at: When it went out of use, epoch milliseconds.

        Raises:
            RemedyError: No clock of this model runs, or it would replace itself.
        """
        with self._log.transaction():
            if version not in self._replay():
                raise RemedyError(f"no clock of the model {version} is running")
            if replaced_by == version:
                raise RemedyError(f"the model {version} cannot replace itself")
            self._topic.append(
                {"type": CLOSED, "v": 1, "at": at, "model": version, "replaced_by": replaced_by}
            )

    def _replay(self) -> dict[str, tuple[int, int]]:
        running: dict[str, tuple[int, int]] = {}
        for told in self._topic.events():
            version = told.text("model")
            if told.text("type") == OPENED and version not in running:
                running[version] = (told.number("retrain_by"), told.number("retire_by"))
            elif told.text("type") == CLOSED and version in running:
                del running[version]
            else:
                raise LogError(
                    f"entry {told.index} is a step of a clock that could not have been taken",
                    index=told.index,
                )
        return running


def _remedy(model: ModelVersion, *, retire_by: int, at: int) -> Remedy:
    if model.retired_at is not None and model.retired_at <= at:
        return Remedy.NONE
    return Remedy.RETIRE if at >= retire_by else Remedy.RETRAIN


def _day(at: int) -> int:
    return at - at % _DAY_MS
