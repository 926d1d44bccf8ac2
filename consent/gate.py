"""Open customer data for one use, or refuse: the only way to a mask over people.

The order is the promise: evaluate, write the permit to the log durably, then hand out. What is
unknown, unreadable or expired is refused, and the refusal is an event as well.
"""

import hashlib
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from consent.canonical import JsonValue
from consent.event import CLOCK_TOLERANCE_MS, LogError, is_count
from consent.ladder import Purpose
from consent.log import Log
from consent.register import Register
from consent.watch import Refused, Watch

__all__ = ["Gate", "Permit", "PermittedView", "Refused", "Use", "UseKind", "Watch", "narrow"]

_FLOOR = 64
MAX_STALENESS_MS = 300_000
_ISSUED = object()
_log = logging.getLogger(__name__)


class UseKind(StrEnum):
    """What is done with the rows."""

    INGEST = "ingest"
    LINK = "link"
    FEATURE = "feature"
    TRAIN = "train"
    SCORE = "score"
    QUERY = "query"
    EXPORT = "export"
    SEND = "send"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a permit is for.

    Attributes:
        kind: What is done with the rows.
        run: Id of the run; empty outside of one.
        round: Round of the run, from 0.
        attempt: Attempt of the round, from 0.
        recipients: Who gets what is derived from the rows.
    """

    kind: UseKind
    run: str = ""
    round: int = 0
    attempt: int = 0
    recipients: tuple[str, ...] = ()

    def format(self) -> dict[str, JsonValue]:
        """Return the use as it stands in an event."""
        return {
            "kind": str(self.kind),
            "run": self.run,
            "round": self.round,
            "attempt": self.attempt,
            "recipients": list(self.recipients),
        }

    @classmethod
    def parse(cls, value: JsonValue) -> "Use":
        """Read a use back from an event."""
        match value:
            case {
                "kind": str(kind),
                "run": str(run),
                "round": int(number),
                "attempt": int(attempt),
                "recipients": list(recipients),
            }:
                names = tuple(str(name) for name in recipients)
                return cls(
                    kind=UseKind(kind), run=run, round=number, attempt=attempt, recipients=names
                )
        raise ValueError("the use of a permit cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Recorded permission for one use; only a gate issues it.

    Attributes:
        permit_id: Random id.
        purpose: Why.
        use: What for.
        state_seq: State of the register that was asked.
        policy_digest: Policy that was in force.
        mask_root: sha256 over a local salt and the packed membership, 64 hex digits.
        issued_at: Epoch milliseconds.
        index: Entry of the log that holds the permit.
        valid_until: When the first consent in it expires; not in the log.
    """

    permit_id: str
    purpose: Purpose
    use: Use
    state_seq: int
    policy_digest: str
    mask_root: str
    issued_at: int
    index: int
    valid_until: int
    issued_by: InitVar[object] = None

    def __post_init__(self, issued_by: object) -> None:
        if issued_by is not _ISSUED:
            raise TypeError("a Permit is issued by Gate.open and cannot be made by hand")


@dataclass(frozen=True, slots=True, eq=False)
class PermittedView:
    """What the gate hands out; nothing else makes one.

    Attributes:
        permit: The permission, already in the log.
        subject_ids: The people who were asked for, in the order of the rows.
        mask: One bool for each of them; read-only.
        rows: Row of each in the register, -1 for an unknown one; read-only.
    """

    permit: Permit
    subject_ids: Sequence[str]
    mask: NDArray[np.bool_]
    rows: NDArray[np.int64]
    issued_by: InitVar[object] = None

    def __post_init__(self, issued_by: object) -> None:
        if issued_by is not _ISSUED:
            raise TypeError("a PermittedView is issued by Gate.open and cannot be made by hand")

    def verify_people(self, subject_ids: Sequence[str]) -> None:
        """Raise `Refused` unless the view is over these people, in this order."""
        # A view over the same number of others would open the rows of the wrong people.
        is_same = self.subject_ids is subject_ids or (
            len(self.subject_ids) == len(subject_ids)
            and all(
                mine == theirs for mine, theirs in zip(self.subject_ids, subject_ids, strict=True)
            )
        )
        if not is_same:
            raise Refused(
                f"the view is over {len(self.subject_ids)} people, and they are not the "
                f"{len(subject_ids)} whose rows were asked for; nothing was read"
            )


def narrow(
    view: PermittedView, positions: NDArray[np.int64] | slice, *, watch: Watch, at: int
) -> NDArray[np.bool_]:
    """Tell who of a batch may still be used: in the view, and permitted at this moment.

    Args:
        view: What a gate handed out.
        positions: The batch, as positions in the view.
        watch: The consent state of this process.
        at: Epoch milliseconds.

    Returns:
        A new mask, one bool for each position.

    Raises:
        Refused: The state is too old and cannot be renewed, or the clock went back.
    """
    mask = watch.permitted(view.rows[positions], view.permit.purpose, at=at)
    mask &= view.mask[positions]
    return mask


class PurposeCheck(Protocol):
    """Something that must hold for a purpose before anybody's rows are opened for it."""

    def verify_purpose(self, purpose: Purpose, *, at: int) -> None:
        """Raise `Refused` unless the purpose may be used at a time."""


class Gate:
    """The one door to customer rows of a node."""

    def __init__(
        self,
        register: Register,
        log: Log,
        *,
        policy_digest: str,
        max_staleness_ms: int = MAX_STALENESS_MS,
        checks: Sequence[PurposeCheck] = (),
    ) -> None:
        """Stand before a register; its permits go to the log.

        Args:
            register: Who agreed to what.
            log: Where permits and refusals go.
            policy_digest: The policy in force, as permits name it.
            max_staleness_ms: Age of the consent state from which all is denied when it cannot
                be renewed, in milliseconds.
            checks: What else must hold for a purpose, such as its impact assessment.
        """
        self._checks = tuple(checks)
        self._watch = Watch(register, max_staleness_ms=max_staleness_ms)
        self._register = register
        self._log = log
        self._policy_digest = policy_digest

    def open(
        self, purpose: Purpose, subject_ids: Sequence[str], *, use: Use, at: int
    ) -> PermittedView:
        """Return a mask over the people asked for, after its permit is in the log durably.

        Args:
            purpose: Why the rows are needed.
            subject_ids: The brand's own ids, in the order of the rows.
            use: What for.
            at: Epoch milliseconds.

        Raises:
            Refused: Nobody is permitted, or anything at all went wrong; nothing was opened.
        """
        try:
            return self._issue(purpose, subject_ids, use=use, at=at)
        except Refused as refusal:
            self._deny(purpose, refusal.reason, use=use, at=at)
            raise
        except Exception as error:
            reason = "the gate could not decide, which is a refusal"
            if isinstance(error, LogError):
                reason = "the consent state or the log cannot be used, which is a refusal"
            self._deny(purpose, reason, use=use, at=at)
            # The error itself may name a path or quote anything; it stays the cause.
            raise Refused(reason) from error

    @property
    def refreshed_at(self) -> int | None:
        """Return the latest time at which the consent state was compared with the tables."""
        return self._watch.refreshed_at

    def batch(
        self, view: PermittedView, positions: NDArray[np.int64] | slice, *, at: int
    ) -> NDArray[np.bool_]:
        """Tell who of a batch may still be used; to be called before each batch.

        Args:
            view: What this gate handed out.
            positions: The batch, as positions in the view.
            at: Epoch milliseconds.

        Returns:
            A new mask, one bool for each position; never more than the view permits.

        Raises:
            Refused: The state is too old and cannot be renewed, or the clock went back.
        """
        return narrow(view, positions, watch=self._watch, at=at)

    def is_permitted(self, row: int, purpose: Purpose, *, at: int) -> bool:
        """Tell for one row of the register whether it may be used now, for a single score.

        Raises:
            Refused: The state is too old and cannot be renewed, or the clock went back.
        """
        return self._watch.is_permitted(row, purpose, at=at)

    def verify_permit(self, permit: Permit) -> None:
        """Raise `Refused` unless this gate's log issued exactly this permit."""
        if self._find(permit.permit_id) != permit:
            raise Refused("the permit is not the one in the log of this node")

    def is_current(self, permit: Permit, *, at: int | None = None) -> bool:
        """Tell whether nobody's consent was taken back, or expired by `at`, since the permit."""
        expired = at is not None and at >= permit.valid_until
        return not expired and self._register.narrowed_seq <= permit.state_seq

    def uses_of(self, subject_id: str) -> list[Permit]:
        """Return every permit that included a person, oldest first."""
        used = self.including(self._register.rows_of(subject_id))
        return [self._find(permit) for permit in used]

    def including(self, rows: Sequence[int], permits: Collection[str] | None = None) -> list[str]:
        """Return the ids of the permits that included any of some rows of the register.

        Args:
            rows: A person's rows, as `Register.rows_of` gives them.
            permits: Only these permits are looked at; None looks at all, oldest first.
        """
        with self._log.reading() as connection:
            found = (
                connection.execute("SELECT permit, members FROM permit_members ORDER BY idx")
                if permits is None
                else (
                    row
                    for permit in sorted(permits)
                    for row in connection.execute(
                        "SELECT permit, members FROM permit_members WHERE permit = ?", (permit,)
                    )
                )
            )
            return [
                str(permit) for permit, members in found if any(_holds(members, r) for r in rows)
            ]

    def is_unchanged(self, permits: Collection[str], purpose: Purpose, *, at: int) -> bool:
        """Tell whether everybody whom some permits included is still permitted.

        Raises:
            Refused: The state is too old and cannot be renewed, a permit is unknown, or the
                clock went back.
        """
        for permit in permits:
            with self._log.reading() as connection:
                row = connection.execute(
                    "SELECT members FROM permit_members WHERE permit = ?", (permit,)
                ).fetchone()
            if row is None:
                raise Refused("the permit is not the one in the log of this node")
            rows = np.flatnonzero(np.unpackbits(np.frombuffer(row[0], np.uint8)))
            if not self._watch.permitted(rows, purpose, at=at).all():
                return False
        return True

    def _issue(
        self, purpose: Purpose, subject_ids: Sequence[str], *, use: Use, at: int
    ) -> PermittedView:
        if not isinstance(purpose, Purpose):
            raise Refused("the purpose is not one that people were asked about")
        if not is_count(at):
            raise Refused("the time of a use must be epoch milliseconds")
        for check in self._checks:
            check.verify_purpose(purpose, at=at)
        with self._log.transaction() as transaction:
            rows = self._register.rows(subject_ids)
            mask = self._watch.permitted(rows, purpose, at=at)
            if not mask.any():
                raise Refused(f"nobody of the people asked for has agreed to {purpose}")
            members, salt = _pack(rows[mask]), secrets.token_bytes(32)
            permit_id = secrets.token_hex(16)
            event: dict[str, JsonValue] = {
                "type": "permit.issued",
                "v": 1,
                "at": at,
                "permit": permit_id,
                "purpose": str(purpose),
                "use": use.format(),
                "state_seq": self._register.state_seq,
                "policy": self._policy_digest,
                "mask_root": hashlib.sha256(salt + members).hexdigest(),
                "included": bucket(int(mask.sum())),
                "excluded": bucket(int((~mask).sum())),
            }
            index = transaction.append(event)
            valid_until = self._register.earliest_until(rows[mask], purpose)
            transaction.connection.execute(
                "INSERT INTO permit_members VALUES (?, ?, ?, ?, ?)",
                (permit_id, index, salt, members, valid_until),
            )
        mask.flags.writeable = rows.flags.writeable = False
        return PermittedView(
            permit=_permit(event, index=index, valid_until=valid_until),
            subject_ids=subject_ids,
            mask=mask,
            rows=rows,
            issued_by=_ISSUED,
        )

    def _deny(self, purpose: Purpose, reason: str, *, use: Use, at: int) -> None:
        name = str(purpose) if isinstance(purpose, Purpose) else "unknown"
        event: dict[str, JsonValue] = {
            "type": "permit.denied",
            "v": 1,
            "at": at,
            "purpose": name,
            "use": use.format(),
            "policy": self._policy_digest,
            "reason": reason,
        }
        try:
            with self._log.transaction() as transaction:
                latest = transaction.head[1]
                if is_count(at) and at < latest - CLOCK_TOLERANCE_MS:
                    # A log takes no event of a time long past: it is told at the latest one.
                    event |= {"type": "clock.anomaly", "at": latest, "claimed": at}
                transaction.append(event)
        except (LogError, ValueError):
            _log.warning("a refusal for %s could not be written to the log", name)

    def _find(self, permit_id: str) -> Permit:
        with self._log.reading() as connection:
            row = connection.execute(
                "SELECT idx, valid_until FROM permit_members WHERE permit = ?", (permit_id,)
            ).fetchone()
        if row is None:
            raise Refused("the permit is not the one in the log of this node")
        return _permit(self._log.entry(row[0]).value, index=row[0], valid_until=row[1])


def bucket(count: int) -> str:
    """Return the power of two at or below a count, as text; "<64" below the floor."""
    return f"<{_FLOOR}" if count < _FLOOR else str(1 << (count.bit_length() - 1))


def _permit(event: Mapping[str, JsonValue], *, index: int, valid_until: int) -> Permit:
    state_seq, issued_at = event["state_seq"], event["at"]
    if not (isinstance(state_seq, int) and isinstance(issued_at, int)):
        raise LogError(f"entry {index} is not a permit", index=index)
    return Permit(
        permit_id=str(event["permit"]),
        purpose=Purpose(str(event["purpose"])),
        use=Use.parse(event["use"]),
        state_seq=state_seq,
        policy_digest=str(event["policy"]),
        mask_root=str(event["mask_root"]),
        issued_at=issued_at,
        index=index,
        valid_until=valid_until,
        issued_by=_ISSUED,
    )


def _pack(rows: NDArray[np.int64]) -> bytes:
    members = np.zeros(int(rows.max()) + 1, np.bool_)
    members[rows] = True
    return np.packbits(members).tobytes()


def _holds(members: bytes, row: int) -> bool:
    return row >> 3 < len(members) and bool(members[row >> 3] >> (7 - (row & 7)) & 1)
