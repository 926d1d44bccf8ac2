"""The coordinator's memory: its key and log, the members it serves, what it witnessed, its runs.

What it does is in an audit log of its own, which the members witness in turn. Holds no customer
data and no brand's own update, only sums over at least the plan's floor.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from consent import (
    Convicted,
    Event,
    Evidence,
    Identity,
    JsonValue,
    Log,
    NoteError,
    PublicIdentity,
    TrustPolicy,
    Watchtower,
)
from consent.durable import replace_files
from coordinator.relay import Relay
from coordinator.rounds import Run
from models.plan import PlanError, SignedPlan
from privacy import Roster


def system_clock() -> int:
    """Epoch milliseconds of this host."""
    return time.time_ns() // 1_000_000


class Host:
    """An open coordinator folder; use `create` once and `open` ever after.

    Attributes:
        folder: Everything below is the coordinator's own. Trusted by nobody but itself.
        identity: Cosigns the members' log heads, and signs its own.
        log: What the coordinator did; an audit log like a node's.
        tower: Cosigns the members' logs, and holds what convicts them.
        relay: Carries heads and cosignatures between the members.
        clock: Gives epoch milliseconds; dates cosignatures and judges what is fresh.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], int] = system_clock) -> None:
        """Open what `create` made; `clock` gives epoch milliseconds."""
        self.folder = folder
        self.clock = clock
        self.identity = Identity.load(folder / "identity.key")
        is_new = not (folder / "log" / "log.sqlite").exists()
        self.log = (Log.create if is_new else Log.open)(folder / "log", self.identity)
        try:
            self.tower = Watchtower(folder, self.identity, self.log, clock=clock)
        except BaseException:
            self.log.close()
            raise
        self.relay = Relay(self.tower, self.log, clock=clock)
        if is_new:
            self.record("coordinator.created", name=self.identity.name)

    @classmethod
    def create(cls, folder: Path, *, name: str, clock: Callable[[], int] = system_clock) -> "Host":
        """Make the coordinator's key and log in a new folder.

        Raises:
            FileExistsError: the folder exists; nothing was changed.
        """
        folder.mkdir(parents=True, mode=0o700)
        Identity.generate(name).save(folder / "identity.key")
        return cls(folder, clock=clock)

    def close(self) -> None:
        """Close the log and the memory of the witness; a second time does nothing."""
        self.tower.close()
        self.log.close()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, event: str, **fields: JsonValue) -> int:
        """Append an event to the coordinator's log, at this moment; return its entry's index."""
        return self.log.append(self.event(event, **fields))

    def event(self, event: str, **fields: JsonValue) -> Event:
        """Make an event of this moment, to be appended together with others."""
        return {"type": event, "v": 1, "at": self.clock(), **fields}

    def publish(self) -> Path:
        """Write the log's offline copy, up to the newest note, and return its folder.

        Raises:
            LogError: the log cannot be read or published.
        """
        self.log.publish(self.folder / "audit")
        return self.folder / "audit"

    def enrol(self, roster: Roster, *, urls: Mapping[str, str] | None = None) -> TrustPolicy:
        """Write down the members, and the policy by which anybody can check their logs.

        Args:
            roster: The members, whose keys people have compared.
            urls: Where witnesses are asked over HTTP, by name.

        Returns:
            The policy, also written to `trust.policy`: a log is believed when its own node
            signed it, and this coordinator and more than half of the other members cosigned it.
        """
        members = [PublicIdentity(name=card.name, key=card.identity) for card in roster.cards]
        policy = TrustPolicy.of_federation(self.identity.public, members, urls=urls)
        files = {"roster": roster.format(), "trust.policy": policy.format().encode()}
        replace_files(self.folder, files)
        self.record(
            "members.enrolled", roster=roster.digest.hex(), members=[one.name for one in members]
        )
        return policy

    @property
    def trust_policy(self) -> TrustPolicy:
        """The policy as it stands in `trust.policy`.

        Raises:
            NoteError: it is missing or was changed into none.
        """
        try:
            return TrustPolicy.parse((self.folder / "trust.policy").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise NoteError("the coordinator has no trust policy; nobody was asked") from error

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
        plan = signed.plan
        self.record("run.offered", run=plan.digest, name=plan.name, members=list(plan.members))
        return Run.load(folder, plan)

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

    @property
    def quarantined(self) -> frozenset[str]:
        """The members whose logs are convicted of two histories, until somebody releases them."""
        return frozenset(self.tower.convicted)

    def verify_not_quarantined(self, name: str) -> None:
        """Raise `Convicted` when a member's log is convicted and nobody has released it."""
        evidence = self.tower.convicted.get(name)
        if evidence is not None:
            raise Convicted(evidence)

    def quarantine(self, evidence: Evidence) -> None:
        """Take no update of a member any more whose own signatures convict it.

        Raises:
            NoteError, PlanError: the evidence convicts nobody, or nobody that is enrolled here.
        """
        name = evidence.log.name
        if self.member(name) != evidence.log:
            raise PlanError(f"the evidence is against another key than that of {name}")
        self.tower.convict(evidence)

    def release(self, name: str, *, reason: str) -> None:
        """Let a quarantined member take part again, by hand of somebody who looked into it.

        Raises:
            UnknownLog: it is not quarantined; nothing was changed.
        """
        self.tower.release(name)
        self.record("member.released", member=name, reason=reason)
