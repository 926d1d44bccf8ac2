"""The coordinator's memory: its key, the members it serves, what it witnessed, its runs.

Holds no customer data and no brand's own update, only sums over at least the plan's floor.
"""

import time
from collections.abc import Callable
from pathlib import Path

from consent import (
    Checkpoint,
    Identity,
    PublicIdentity,
    TrustPolicy,
    Witness,
    verify_log_signature,
)
from coordinator.rounds import Run
from models.exchange import Witnessed
from models.plan import PlanError, SignedPlan
from privacy import Roster


def system_clock() -> int:
    """Epoch milliseconds of this host."""
    return time.time_ns() // 1_000_000


class Host:
    """An open coordinator folder; use `create` once and `open` ever after.

    Attributes:
        folder: Everything below is the coordinator's own. Trusted by nobody but itself.
        identity: Cosigns the members' log heads.
        clock: Gives epoch milliseconds; dates cosignatures and judges what is fresh.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], int] = system_clock) -> None:
        """Open what `create` made; `clock` gives epoch milliseconds."""
        self.folder = folder
        self.clock = clock
        self.identity = Identity.load(folder / "identity.key")
        self._witness = Witness(folder / "witness.sqlite", self.identity)
        self._notes: dict[str, Witnessed] = {}

    @classmethod
    def create(cls, folder: Path, *, name: str, clock: Callable[[], int] = system_clock) -> "Host":
        """Make the coordinator's key in a new folder.

        Raises:
            FileExistsError: the folder exists; nothing was changed.
        """
        folder.mkdir(parents=True, mode=0o700)
        Identity.generate(name).save(folder / "identity.key")
        return cls(folder, clock=clock)

    def close(self) -> None:
        """Close the memory of the witness."""
        self._witness.close()

    def enrol(self, roster: Roster) -> TrustPolicy:
        """Write down the members, and the policy by which anybody can check their logs.

        Returns:
            The policy, also written to `trust.policy`: a log is believed when its own node
            signed it and this coordinator cosigned it.
        """
        (self.folder / "roster").write_bytes(roster.format())
        policy = TrustPolicy(
            logs=tuple(PublicIdentity(name=card.name, key=card.identity) for card in roster.cards),
            witnesses={self.identity.name: self.identity.public},
            groups={},
            quorum=self.identity.name,
        )
        (self.folder / "trust.policy").write_text(policy.format())
        return policy

    @property
    def roster(self) -> Roster:
        """The enrolled members."""
        return Roster.parse((self.folder / "roster").read_bytes())

    def member(self, name: str) -> PublicIdentity:
        """The signing key of an enrolled member.

        Raises:
            PlanError: nobody of that name is enrolled.
        """
        card = self.roster.card(name)
        if card is None:
            raise PlanError(f"{name} is not enrolled; its message was dropped")
        return PublicIdentity(name=card.name, key=card.identity)

    def propose(self, signed: SignedPlan) -> Run:
        """Keep a plan with its signatures, and open its run."""
        folder = self.folder / "runs" / signed.plan.digest
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan").write_bytes(signed.format())
        return Run.load(folder, signed.plan)

    def run(self, digest: str) -> tuple[SignedPlan, Run]:
        """A proposed plan and how far its run has come.

        Raises:
            PlanError: no such plan was proposed.
        """
        folder = self.folder / "runs" / digest
        if not digest.isalnum() or not (folder / "plan").is_file():
            raise PlanError(f"no plan {digest[:12]} was proposed; nothing was run")
        signed = SignedPlan.parse((folder / "plan").read_bytes())
        return signed, Run.load(folder, signed.plan)

    def witnessed(self, name: str) -> Witnessed:
        """What to tell a member about the last head of its log that was cosigned."""
        note = self._notes.get(name)
        return note or Witnessed(tree_size=self._witness.size_of(name), note="")

    def cosign(
        self, name: str, *, checkpoint: str, proof: tuple[bytes, ...], at: int
    ) -> Checkpoint:
        """Cosign a member's newest head, if it extends the last one, and return it.

        Raises:
            NoteError, ProofError, EquivocationError: it does not, or is not the member's.
        """
        member = self.member(name)
        note = self._witness.cosign(checkpoint, log=member, proof=proof, at=at)
        self._notes[name] = Witnessed(tree_size=self._witness.size_of(name), note=note)
        return verify_log_signature(checkpoint, member)
