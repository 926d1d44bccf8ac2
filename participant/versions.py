"""Remember which rounds and which permits are in each model, and when a model must go.

A model that the node keeps is a version: its events say which sums this brand sent for it, under
which permits. From the permits the node, and only the node, can tell who was in them. A version
whose second clock has run out is not handed out any more.
"""

import dataclasses
import hashlib
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consent import (
    AffectedModel,
    Gate,
    JsonValue,
    Log,
    LogError,
    ModelVersion,
    Purpose,
    Register,
    Remedies,
    RemedyClocks,
    Told,
    Topic,
    UseKind,
    trace,
)
from consent.durable import replace_files
from models.sums import Parameters

_RELEASED, _RETIRED, _SENT = "model.released", "model.retired", "release.sent"


class ModelOutOfUse(Exception):  # noqa: N818 - an answer, named for the answer
    """A model was not handed out, or a step of its life may not be taken; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """A version of a model that this node keeps.

    Attributes:
        version: Digest of its plan; a plan makes one model.
        purpose: What people agreed to for it.
        sums: The (round, permit) pairs of what this brand sent for it.
        sha256: Of the file.
        released_at: When it was saved, epoch milliseconds.
        retired_at: When it went out of use; None while it is in use.
        replaced_by: The version that took its place; empty for none.
    """

    version: str
    purpose: Purpose
    sums: tuple[tuple[int, str], ...]
    sha256: str
    released_at: int
    retired_at: int | None = None
    replaced_by: str = ""

    @property
    def permits(self) -> tuple[str, ...]:
        """The permits under which people were in it."""
        return tuple(permit for _, permit in self.sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedRound:
    """A round for which a person's data was opened.

    Attributes:
        run: The plan's digest.
        round: From 1.
        is_sent: Whether a sum with them in it left the node; else it was thrown away.
    """

    run: str
    round: int
    is_sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedModel:
    """A model that learned from a person.

    Attributes:
        model: The version.
        clocks: What is to be done and until when; None when no clock runs.
    """

    model: SavedModel
    clocks: AffectedModel | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonLineage:
    """Where a person's data went; it is about a person, so keep it at home.

    Attributes:
        rounds: In order of run and round.
        models: In the order of their release.
    """

    rounds: tuple[UsedRound, ...]
    models: tuple[UsedModel, ...]


class Versions:
    """The models of one node."""

    def __init__(self, log: Log, gate: Gate, *, folder: Path, clocks: RemedyClocks) -> None:
        """Keep their events in the log and their files in a folder.

        Raises:
            LogError: The log cannot be written.
        """
        self._log = log
        self._gate = gate
        self._folder = folder
        self._clocks = clocks
        self._topic = Topic(log, (_RELEASED, _RETIRED))
        self._sent = Topic(log, (_SENT,))
        self._remedies = Remedies(log)

    @property
    def all(self) -> list[SavedModel]:
        """Every version, in the order of release, retired ones as well."""
        found: dict[str, SavedModel] = {}
        for told in self._topic.events():
            version = told.text("model")
            if told.text("type") == _RELEASED and version not in found:
                found[version] = _saved(told)
            elif told.text("type") == _RETIRED and version in found:
                found[version] = _retired(found[version], told)
            else:
                raise LogError(f"entry {told.index} is no step of a model", index=told.index)
        return list(found.values())

    def record_sent(self, *, at: int, **fields: JsonValue) -> int:
        """Write down that a sum leaves the node; return its entry."""
        return self._sent.append({"type": "release.sent", "v": 1, "at": at, **fields})

    def was_sent(self, run: str, *, round: int, attempt: int) -> bool:  # noqa: A002 - our word
        """Tell whether the sum of a round and attempt has left the node before."""
        return any(
            (told.text("run"), told.number("round"), told.number("attempt"))
            == (run, round, attempt)
            for told in self._sent.events()
        )

    def save(self, version: str, purpose: Purpose, data: bytes, *, at: int) -> Path:
        """Keep a model as `VERSION.npz`, and log what it was made of.

        If somebody who was in it is no longer permitted, its clocks begin to run at once.
        The same bytes again change nothing.

        Raises:
            ModelOutOfUse: Another model was saved for this plan before; nothing was kept.
            LogError: The log cannot be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        known = {model.version: model for model in self.all}.get(version)
        if known is not None and known.sha256 != digest:
            raise ModelOutOfUse(
                f"the model of plan {version} was saved before and this one differs; "
                "nothing was kept"
            )
        replace_files(self._folder, {f"{version}.npz": data})
        if known is None:
            with self._log.transaction():
                self._release(version, purpose, digest, at=at)
        return self._folder / f"{version}.npz"

    def load(self, version: str, *, at: int) -> Parameters:
        """Hand out a model that may still be used.

        Raises:
            ModelOutOfUse: It was never saved here, is retired, had to be retired by now, or its
                file is not the one that was saved.
        """
        model = self._known(version)
        if model.retired_at is not None:
            raise ModelOutOfUse(f"the model {version} is retired; nothing was handed out")
        for late in self._remedies.running(at=at):
            if late.version == version and at >= late.retire_by:
                raise ModelOutOfUse(
                    f"the model {version} learned from somebody who withdrew and had to be out of "
                    "use by now: retire it, and train one without them; nothing was handed out"
                )
        path = self._folder / f"{version}.npz"
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != model.sha256:
            raise ModelOutOfUse(
                f"the file of the model {version} is not the one that was saved; "
                "nothing was handed out"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def retire(self, version: str, *, replaced_by: str = "", at: int) -> int:
        """Take a model out of use and stop its clocks; return the entry that says so.

        Args:
            version: The model.
            replaced_by: The version that takes its place; empty for none.
            at: Epoch milliseconds.

        Raises:
            ModelOutOfUse: There is no such model, it is retired already, or the other one is not
                in use, is the same, or has clocks running itself; nothing was changed.
            LogError: The log cannot be written; nothing was changed.
        """
        with self._log.transaction():
            model = self._known(version)
            if model.retired_at is not None:
                raise ModelOutOfUse(f"the model {version} is retired already; nothing was changed")
            running = {late.version for late in self._remedies.running(at=at)}
            if replaced_by:
                other = self._known(replaced_by)
                is_good = other.retired_at is None and replaced_by not in {version, *running}
                if not is_good:
                    raise ModelOutOfUse(
                        f"the model {replaced_by} cannot take the place of {version}: it is the "
                        "same one, retired, or learned from somebody who withdrew; "
                        "nothing was changed"
                    )
            if version in running:
                self._remedies.close(version, replaced_by=replaced_by, at=at)
            return self._topic.append(
                {
                    "type": "model.retired",
                    "v": 1,
                    "at": at,
                    "model": version,
                    "replaced_by": replaced_by,
                }
            )

    def clocks(self, *, at: int) -> list[AffectedModel]:
        """Return the models whose clocks run, with what is to be done now."""
        return self._remedies.running(at=at)

    def begin_remedies(
        self, rows: Sequence[int], purposes: Collection[Purpose], *, at: int
    ) -> list[str]:
        """Start the clocks of the models in use that learned from a person.

        Args:
            rows: The person's rows in the register.
            purposes: What they took back; models for other purposes are left alone.
            at: When, epoch milliseconds.

        Returns:
            The versions whose clocks began to run.
        """
        models = self.all
        concerned = [m for m in models if m.retired_at is None and m.purpose in purposes]
        permits = {permit for model in concerned for permit in model.permits}
        # Only permits whose sums are in a model are looked through: most withdrawals meet none.
        used = set(self._gate.including(rows, permits)) if permits and rows else set()
        return self._begin(models, [m for m in concerned if used & set(m.permits)], at=at)

    def lineage(self, register: Register, subject_id: str, *, at: int) -> PersonLineage:
        """Tell where a person's data went.

        Raises:
            LogError: The log cannot be read.
        """
        sent = {told.text("permit") for told in self._sent.events()}
        rounds: dict[tuple[str, int], bool] = {}
        for permit in self._gate.uses_of(subject_id):
            if permit.use.kind is UseKind.TRAIN:
                key = (permit.use.run, permit.use.round)
                rounds[key] = rounds.get(key, False) or permit.permit_id in sent
        used = set(self._gate.including(register.rows_of(subject_id)))
        running = {model.version: model for model in self._remedies.running(at=at)}
        return PersonLineage(
            rounds=tuple(
                UsedRound(run=run, round=number, is_sent=is_sent)
                for (run, number), is_sent in sorted(rounds.items())
            ),
            models=tuple(
                UsedModel(model=model, clocks=running.get(model.version))
                for model in self.all
                if used & set(model.permits)
            ),
        )

    def _release(self, version: str, purpose: Purpose, digest: str, *, at: int) -> None:
        sums = sorted(
            {
                (told.number("round"), told.text("permit"))
                for told in self._sent.events()
                if told.text("run") == version
            }
        )
        self._topic.append(
            {
                "type": "model.released",
                "v": 1,
                "at": at,
                "model": version,
                "purpose": str(purpose),
                "sha256": digest,
                "sums": [{"round": number, "permit": permit} for number, permit in sums],
            }
        )
        if not self._gate.is_unchanged({permit for _, permit in sums}, purpose, at=at):
            models = self.all
            self._begin(models, [model for model in models if model.version == version], at=at)

    def _begin(
        self, models: Iterable[SavedModel], affected: Iterable[SavedModel], *, at: int
    ) -> list[str]:
        uses = {(model.version, number) for model in affected for number, _ in model.sums}
        if not uses:
            return []
        known = [
            ModelVersion(
                version=model.version,
                rounds=frozenset((model.version, number) for number, _ in model.sums),
                retired_at=model.retired_at,
            )
            for model in models
        ]
        lineage = trace(uses, known, withdrawn_at=at, clocks=self._clocks, at=at)
        return self._remedies.open(lineage, at=at)

    def _known(self, version: str) -> SavedModel:
        for model in self.all:
            if model.version == version:
                return model
        raise ModelOutOfUse(f"no model {version} was saved here; nothing was handed out")


def _saved(told: Told) -> SavedModel:
    sums = []
    listed = told.event.get("sums")
    for part in listed if isinstance(listed, list) else [None]:
        match part:
            case {"round": int(number), "permit": str(permit)}:
                sums.append((number, permit))
            case _:
                raise LogError(f"entry {told.index} is no step of a model", index=told.index)
    return SavedModel(
        version=told.text("model"),
        purpose=Purpose(told.text("purpose")),
        sums=tuple(sums),
        sha256=told.text("sha256"),
        released_at=told.number("at"),
    )


def _retired(model: SavedModel, told: Told) -> SavedModel:
    return dataclasses.replace(
        model, retired_at=told.number("at"), replaced_by=told.text("replaced_by")
    )
