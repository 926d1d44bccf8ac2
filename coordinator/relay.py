"""Carry heads between the members and bring cosignatures back, for those who share no network.

Nobody has to believe the relay: a head is signed by its log, a proof shows that the log only grew,
and a cosignature is its witness's own. What it may do is leave something out; then a quorum is
missed and the update is not accepted.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from consent import (
    NO_QUORUM,
    Checkpoint,
    Log,
    NoteError,
    OtherSize,
    ProofError,
    PublicIdentity,
    TrustPolicy,
    Watchtower,
    merge_cosignatures,
    verify_cosignatures,
    verify_log_signature,
)
from consent.event import CLOCK_TOLERANCE_MS
from consent.submission import Submission
from models.exchange import Reply, Testimony, Witnessed

# How old a cosignature may be under an update that is added up.
FRESH_MS = 600_000


@dataclass(slots=True, kw_only=True)
class _Head:
    """One head on its way.

    Attributes:
        size: Its tree size.
        note: The head as its log signed it.
        cosigned: The same with every cosignature so far.
        cosigners: Time of each of them, epoch milliseconds, all verified.
        proofs: Consistency proofs of the head by older size.
    """

    size: int
    note: str
    cosigned: str
    cosigners: Mapping[str, int]
    proofs: dict[int, tuple[bytes, ...]]

    @classmethod
    def of(cls, cosigned: str, policy: TrustPolicy) -> "_Head":
        """Verify a note and take it apart."""
        verified = verify_cosignatures(cosigned, policy)
        return cls(
            size=verified.checkpoint.tree_size,
            note=merge_cosignatures(cosigned, cosigned, policy.only(())),
            cosigned=cosigned,
            cosigners=verified.cosigners,
            proofs={},
        )

    def merge(self, shown: str, policy: TrustPolicy) -> None:
        """Add the cosignatures of another note of this head."""
        self.cosigned = merge_cosignatures(self.cosigned, shown, policy)
        self.cosigners = verify_cosignatures(self.cosigned, policy).cosigners


class Relay:
    """The newest head of each log, and what each witness is known to have cosigned."""

    def __init__(self, tower: Watchtower, log: Log, *, clock: Callable[[], int]) -> None:
        """Begin with nothing; members say what they know when they are first asked.

        Args:
            tower: The coordinator as a witness.
            log: The coordinator's own log, which is relayed like the others.
            clock: Tells epoch milliseconds.
        """
        self._tower, self._log, self._clock = tower, log, clock
        self._heads: dict[str, _Head] = {}
        self._known: dict[str, dict[str, int]] = {}
        self._held: frozenset[str] = frozenset()

    def hold(self, origins: Iterable[str]) -> None:
        """Keep carrying the heads of these logs, and of no other, until enough have seen them.

        A log that grows all the time would otherwise never have one head that enough have seen.
        """
        self._held = frozenset(origins)

    def witnessed(self, name: str) -> Witnessed:
        """What to tell a member about the last head of its log that was cosigned."""
        head = self._heads.get(name)
        note = head.cosigned if head is not None else self._tower.newest(name)
        size = self._tower.size_of(name)
        sizes = {known.get(name, 0) for by, known in self._known.items() if by != name}
        return Witnessed(tree_size=size, note=note or "", sizes=tuple(sorted(sizes - {0, size})))

    def take(self, member: PublicIdentity, reply: Reply, policy: TrustPolicy) -> Checkpoint:
        """Cosign the head in a member's reply and relay it from now on.

        Raises:
            NoteError, ProofError, Convicted: it is not the member's, or does not extend the last.
        """
        head = self._cosign(member, reply.checkpoint, reply.proof)
        self._keep(member.name, reply, policy, head)
        return head.checkpoint

    def refresh(self, member: PublicIdentity, reply: Reply, policy: TrustPolicy) -> None:
        """Do the same, but keep relaying the head that is held, if there is one.

        Raises:
            NoteError, ProofError, Convicted: as `take` does.
        """
        cosigned = self._cosign(member, reply.checkpoint, reply.proof)
        head = self._heads.get(member.name)
        is_same = head is not None and head.size == cosigned.checkpoint.tree_size
        if head is None or is_same or not self._is_held(member.name, head):
            self._keep(member.name, reply, policy, cosigned)

    def submissions(
        self, witness: str, policy: TrustPolicy, *, origins: Collection[str]
    ) -> tuple[str, ...]:
        """Those of the heads that a member has not cosigned lately, with a proof it can check."""
        if self._log.origin in origins:
            self._keep_own(policy)
        found = []
        for origin in origins:
            head = self._heads.get(origin)
            if head is None or origin == witness or self._is_recent(witness, head):
                continue
            old = self._known.get(witness, {}).get(origin, 0)
            proof = self._proof(origin, head, old)
            if proof is not None:
                found.append(Submission(old_size=old, proof=proof, note=head.note).format())
        return tuple(found)

    def absorb(self, witness: str, testimony: Testimony, policy: TrustPolicy) -> None:
        """Keep what a member says as a witness, each line after checking it.

        Raises:
            NoteError: a cosignature is not that member's, or of another time; those before it
                were kept.
        """
        self._known[witness] = {log.name: testimony.known.get(log.name, 0) for log in policy.logs}
        for origin, line in testimony.cosigned:
            head = self._heads.get(origin)
            if head is None or self._known[witness].get(origin) != head.size:
                continue
            alone = policy.only({witness})
            at = verify_cosignatures(head.note + line, alone).cosigners.get(witness)
            if at is None:
                raise NoteError(f"its cosignature of the log {origin!r} is not its own")
            if abs(at - self._clock()) > CLOCK_TOLERANCE_MS:
                raise NoteError(
                    f"its cosignature of the log {origin!r} has a time five minutes off or more"
                )
            head.merge(head.note + line, policy)
            if origin == self._log.origin:
                self._log.collect(head.cosigned, policy)

    def verify_fresh(self, name: str, policy: TrustPolicy, *, tree_size: int) -> tuple[str, ...]:
        """Tell who has cosigned a head of at least a size in the last ten minutes.

        Raises:
            NoteError: they are not the quorum.
        """
        head = self._heads.get(name)
        fresh = () if head is None or head.size < tree_size else self._fresh(head)
        if not policy.is_quorum(fresh):
            found = ", ".join(fresh) or "nobody"
            raise NoteError(
                f"its log head was cosigned in the last ten minutes by {found}, which is not the "
                f"quorum {policy.quorum!r}"
            )
        return fresh

    def is_settled(self, names: Iterable[str], policy: TrustPolicy) -> bool:
        """Tell whether the newest heads of all these logs have a fresh quorum."""
        return all(
            name in self._heads and policy.is_quorum(self._fresh(self._heads[name]))
            for name in names
        )

    def _cosign(self, member: PublicIdentity, note: str, proof: tuple[bytes, ...]) -> "_Cosigned":
        known = self._tower.size_of(member.name)
        head = verify_log_signature(note, member)
        if head.tree_size < known:
            raise ProofError(
                f"the log {member.name!r} shows {head.tree_size} entries after {known}"
            )
        alone = TrustPolicy(logs=(member,), witnesses={}, groups={}, quorum=NO_QUORUM)
        try:
            line = self._tower.judge(Submission(old_size=known, proof=proof, note=note), alone)
        except OtherSize as error:
            raise ProofError(
                f"the log {member.name!r} signed two different heads of size {known}"
            ) from error
        return _Cosigned(checkpoint=head, known=known, line=line)

    def _keep(self, name: str, reply: Reply, policy: TrustPolicy, cosigned: "_Cosigned") -> None:
        own = merge_cosignatures(reply.checkpoint, reply.checkpoint, policy.only({name}))
        note = merge_cosignatures(own, own + cosigned.line, policy)
        proofs = {growth.old_size: growth.proof for growth in reply.growth}
        proofs[cosigned.known] = reply.proof
        size, head = cosigned.checkpoint.tree_size, self._heads.get(name)
        if head is not None and head.size == size:
            head.merge(note, policy)
        else:
            head = self._heads[name] = _Head.of(note, policy)
        head.proofs.update(proofs)

    def _keep_own(self, policy: TrustPolicy) -> None:
        """Relay the coordinator's own head as well."""
        name = self._log.origin
        head = self._heads.get(name)
        if head is None or (head.size != self._log.tree_size and not self._is_held(name, head)):
            self._heads[name] = _Head.of(self._tower.cosign_own(), policy)

    def _is_held(self, origin: str, head: _Head) -> bool:
        """Tell whether a head must stay; one that somebody cannot be given a proof for need not."""
        olds = [known.get(origin, 0) for by, known in self._known.items() if by != origin]
        return origin in self._held and all(
            self._proof(origin, head, old) is not None for old in olds
        )

    def _proof(self, origin: str, head: _Head, old: int) -> tuple[bytes, ...] | None:
        if old > head.size:
            return None
        if old in (0, head.size):
            return ()
        if origin == self._log.origin:
            return tuple(self._log.consistency_proof(old, head.size))
        return head.proofs.get(old)

    def _fresh(self, head: _Head) -> tuple[str, ...]:
        now = self._clock()
        return tuple(
            name
            for name, at in head.cosigners.items()
            if -CLOCK_TOLERANCE_MS <= now - at <= FRESH_MS
        )

    def _is_recent(self, witness: str, head: _Head) -> bool:
        at = head.cosigners.get(witness)
        return at is not None and self._clock() - at <= FRESH_MS // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cosigned:
    """A head that the coordinator has just cosigned, from which size on, and its line."""

    checkpoint: Checkpoint
    known: int
    line: str
