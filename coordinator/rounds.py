"""The durable record of a run: what was asked, who answered, what came of it.

A round is written, parameters and all, before the next one begins, so a run that was cut off
goes on where it stopped.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from consent.durable import replace_files
from models.plan import Plan
from models.sums import format_parameters

# What the readers of JSON and of arrays raise for files that they did not write.
_DAMAGE = (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError, AttributeError)


class RunStatus(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class NotAdded(StrEnum):
    """Why an update was not added up, for the coordinator's log."""

    SILENT = "silent"
    DECLINED = "declined"
    UNTRUSTED = "untrusted"
    UNWITNESSED = "unwitnessed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One answered round.

    Attributes:
        round: 1 for the plan's first query.
        attempt: The attempt that succeeded.
        name: What was summed.
        cohort: Who is in the sum.
        bytes_up: Bytes of content received, by brand.
    """

    round: int
    attempt: int
    name: str
    cohort: tuple[str, ...]
    bytes_up: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a round, whether or not it was answered.

    Attributes:
        round: 1 for the plan's first query.
        attempt: 1 for the first attempt at the round.
        cohort: Who was asked.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of one plan; the only mutable record here, and saved after each change.

    Attributes:
        folder: Where the record lives.
        status: How the run stands.
        reason: Why it failed; empty otherwise.
        rounds: The rounds that are done.
        asked: The newest attempt, written before anybody was asked; None before the first.
        refusals: Reason by brand, for those that do not take part.
        bytes_up: Bytes of content received outside of rounds, by brand.
        parameters: The model after the last round done.
    """

    folder: Path
    status: RunStatus = RunStatus.RUNNING
    reason: str = ""
    rounds: list[RoundRecord] = field(default_factory=list)
    asked: Attempt | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    parameters: Mapping[str, NDArray[np.float64]]

    @classmethod
    def load(cls, folder: Path, plan: Plan) -> "Run":
        """Read a run, or begin one that has no record yet.

        Raises:
            ValueError: the record is damaged; the run must not go on from it.
        """
        path = folder / "run.json"
        if not path.exists():
            return cls(folder=folder, parameters=plan.recipe.begin())
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            rounds = [
                RoundRecord(**{**entry, "cohort": tuple(entry["cohort"])})
                for entry in document.pop("rounds")
            ]
            status = RunStatus(document.pop("status"))
            asked = document.pop("asked")
            if asked is not None:
                asked = Attempt(**{**asked, "cohort": tuple(asked["cohort"])})
            with np.load(folder / f"round-{len(rounds)}.npz", allow_pickle=False) as arrays:
                parameters = {name: arrays[name] for name in arrays.files}
            return cls(
                folder=folder,
                status=status,
                rounds=rounds,
                asked=asked,
                parameters=parameters,
                **document,
            )
        except _DAMAGE as error:
            raise ValueError(f"the record in {folder} is damaged; the run stops here") from error

    def next_attempt(self, number: int, cohort: tuple[str, ...]) -> int:
        """The attempt at which to ask a cohort for a round, also after the run was cut off.

        Members answer one attempt for one cohort only, so another cohort is another attempt.
        """
        if self.asked is None or self.asked.round != number:
            return 1
        return self.asked.attempt + (self.asked.cohort != cohort)

    def begin_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt, durably, before anybody is asked."""
        self.asked = attempt
        self.save()

    @property
    def total_bytes_up(self) -> dict[str, int]:
        """Bytes of content received in the whole run, by brand."""
        total = dict(self.bytes_up)
        for record in self.rounds:
            for name, size in record.bytes_up.items():
                total[name] = total.get(name, 0) + size
        return total

    def finish_round(
        self, record: RoundRecord, parameters: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Add a round and the model after it, durably."""
        self.rounds.append(record)
        self.parameters = parameters
        self._save_parameters()
        self.save()

    def end(self, status: RunStatus, *, reason: str = "") -> None:
        """Say how the run ended, durably."""
        self.status, self.reason = status, reason
        self.save()

    def save(self) -> None:
        """Write `run.json`, whole or not at all."""
        if not self.rounds:
            self._save_parameters()
        document = {
            "status": self.status.value,
            "reason": self.reason,
            "rounds": [dataclasses.asdict(record) for record in self.rounds],
            "asked": None if self.asked is None else dataclasses.asdict(self.asked),
            "refusals": self.refusals,
            "bytes_up": self.bytes_up,
        }
        replace_files(self.folder, {"run.json": json.dumps(document, indent=1).encode()})

    def _save_parameters(self) -> None:
        name = f"round-{len(self.rounds)}.npz"
        replace_files(self.folder, {name: format_parameters(self.parameters)})
