"""One brand's node: its keys, its memory, what it has approved, and its data.

Everything a node must not forget lives in one folder. Opening a node checks that none of it
was put back from an older copy. Data is read only when somebody asks for rows.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from consent import (
    Access,
    AccessGrant,
    Action,
    Assessments,
    Gate,
    Identity,
    IdentityError,
    JsonValue,
    Ladder,
    LadderError,
    Log,
    LogError,
    NoteError,
    Outbox,
    Overdue,
    PublicIdentity,
    Purpose,
    Recipient,
    Register,
    Rulebook,
    TrustPolicy,
    Watchtower,
    append_state_root,
    needing_assessment,
    newest_state_root,
)
from consent.cedar import CedarEngine
from consent.durable import replace_files
from consent.policy import SHIPPED
from models.plan import Plan, PlanError, SignedPlan, code_digest
from models.sums import Parameters, format_parameters
from participant.accounts import Accounts
from participant.config import ConfigError, ParticipantConfig
from participant.customers import Catalogue, CustomerTable, load_catalogue, load_customers
from participant.declared import Declarations
from participant.partners import HandleMode
from participant.shared_handles import SharedHandles
from participant.versions import PersonLineage, Versions
from participant.withdrawals import Withdrawals
from privacy import (
    AgreementKey,
    Budget,
    GaussianRelease,
    Ledger,
    LedgerError,
    MemberCard,
    Party,
    ReleaseKey,
    Roster,
    RosterError,
    compose,
    make_card,
)

Clock: TypeAlias = Callable[[], int]

STATE_ROOT_EVERY_MS = 24 * 60 * 60 * 1000
WRAPPING = "wrapping"
"""What a request to rotate the wrapping key is about."""


_UNUSABLE = (
    *(ConfigError, IdentityError, LadderError, LedgerError),
    *(LogError, NoteError, OSError, RosterError),
)


class NodeError(Exception):
    """The node's folder is not as the node left it, or lacks a part; nothing was started."""


def system_clock() -> int:
    """Epoch milliseconds of this host."""
    return time.time_ns() // 1_000_000


class Node:
    """An open node; use `create` once and `open` ever after.

    Attributes:
        config: What the brand decided.
        identity: Signs plans, contributions and log heads.
        log: The audit log.
        register: Who agreed to what.
        rulebook: Which access rules are in force.
        access: What people and services may do.
        accounts: Which people and services there are, and how fresh their second factors are.
        assessments: Impact assessments, without which the gate opens no purpose that needs one.
        gate: The only way to rows.
        tower: Cosigns the logs of peers, and knows what was seen of the own one.
        ledger: What each purpose has spent.
        versions: The models it keeps, who is in them, and until when they may be used.
        handles: Under which random names other brands know a person.
        outbox: The notices of withdrawal that wait for their recipients.
        withdrawals: The door for everything that a person takes back.
        declared: The profile in force, who answers for the data, and what both were earlier.
    """

    def __init__(self, config: ParticipantConfig, *, clock: Clock, log: Log) -> None:
        """Take the parts that `create` and `open` prepared."""
        folder = config.folder
        self.config = config
        self.clock = clock
        self.log = log
        self.identity = Identity.load(folder / "identity.key")
        self.declared = Declarations(
            folder / "declared",
            profile_text=config.read_profile(),
            controller=config.controller,
        )
        self.register = Register(
            log,
            pseudonym_key=(folder / "pseudonym.key").read_bytes(),
            profile=self.ladder,
        )
        self.rulebook = Rulebook(log)
        self.access = Access(CedarEngine(SHIPPED), log, activated=self.rulebook.active_digest)
        self.accounts = Accounts(
            log,
            self.access,
            key=load_key(folder / "accounts.key"),
            in_force=lambda: self.rulebook.active_digest() is not None,
        )
        self.assessments = Assessments(log, needed=needing_assessment(self.ladder))
        self.gate = Gate(
            self.register,
            log,
            policy_digest=self.ladder.digest,
            checks=(self.assessments,),
        )
        self.tower = Watchtower(folder, self.identity, log, clock=clock)
        self.ledger = Ledger.open(folder / "ledger.sqlite", _budgets(config))
        spreading = config.spreading
        self.versions = Versions(
            log, self.gate, folder=folder / "models", clocks=spreading.remedy.clocks
        )
        self.handles = SharedHandles(log)
        self.outbox = Outbox(
            log,
            self.identity,
            [
                Recipient(identity=one.identity, purposes=one.purposes)
                for one in spreading.recipients.values()
            ],
            backoff=spreading.propagation.backoff,
        )
        self.withdrawals = Withdrawals(
            log,
            self.register,
            outbox=self.outbox,
            handles=self.handles,
            versions=self.versions,
        )
        self._agreement = AgreementKey.load(folder / "agreement.key")
        self._party: Party | None = None
        self._coordinator: PublicIdentity | None = None
        self._table: CustomerTable | None = None
        self._catalogue: Catalogue | None = None

    @classmethod
    def create(cls, config: ParticipantConfig, *, clock: Clock = system_clock) -> "Node":
        """Make keys, log and ledger in a new folder.

        Raises:
            NodeError: the folder exists already; nothing was changed.
        """
        try:
            config.folder.mkdir(parents=True, mode=0o700)
        except FileExistsError as error:
            raise NodeError(f"{config.folder} exists already; nothing was created") from error
        Identity.generate(config.name).save(config.folder / "identity.key")
        AgreementKey.generate().save(config.folder / "agreement.key")
        _write_secret(config.folder / "pseudonym.key", secrets.token_bytes(32))
        Ledger.create(config.folder / "ledger.sqlite", _budgets(config)).close()
        identity = Identity.load(config.folder / "identity.key")
        log = Log.create(config.folder / "log", identity, store=config.store)
        log.append({"type": "node.created", "v": 1, "at": clock(), "name": config.name})
        return cls(config, clock=clock, log=log)

    @classmethod
    def open(cls, config: ParticipantConfig, *, clock: Clock = system_clock) -> "Node":
        """Open a node and check that no part of its memory is older than another.

        Raises:
            NodeError: a part is missing or damaged, or the ledger is older than the audit log.
        """
        try:
            identity = Identity.load(config.folder / "identity.key")
            log = Log.open(config.folder / "log", identity, store=config.store)
            try:
                return cls._of_parts(config, clock=clock, log=log)
            except BaseException:
                log.close()
                raise
        except _UNUSABLE as error:
            raise NodeError(f"the node in {config.folder} cannot be opened: {error}") from error

    @classmethod
    def _of_parts(cls, config: ParticipantConfig, *, clock: Clock, log: Log) -> "Node":
        node = cls(config, clock=clock, log=log)
        try:
            node._verify_ledger()
            if (config.folder / "roster").exists():
                node._load_members()
        except BaseException:
            node.tower.close()
            node.ledger.close()
            raise
        return node

    def close(self) -> None:
        """Close log, ledger and witness; a second time does nothing."""
        self.tower.close()
        self.ledger.close()
        self.log.close()

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The node's name in the consortium."""
        return self.config.name

    @property
    def ladder(self) -> Ladder:
        """The profile in force, with all it says."""
        return self.declared.ladder

    @property
    def card(self) -> MemberCard:
        """The public keys that the others pin, signed by this node."""
        return make_card(
            self.name,
            self.identity.sign,
            identity=self.identity.public.key,
            agreement=self._agreement.public,
        )

    def pin(self, roster: Roster, coordinator: PublicIdentity) -> None:
        """Trust these members and this coordinator from now on; once, after people compared keys.

        Raises:
            NodeError: other members were pinned before; rotation is a signed act of its own.
            RosterError: the roster does not hold this node's own keys; nothing was changed.
        """
        folder = self.config.folder
        pinned = {
            folder / "roster": roster.format(),
            folder / "coordinator.vkey": coordinator.format().encode(),
        }
        # Every check comes before the first write: a node cannot open with a wrong roster.
        Party(self.name, self._agreement, roster, floor=self.config.cohort_floor)
        for path, data in pinned.items():
            if path.exists() and path.read_bytes() != data:
                raise NodeError(f"{path.name} was pinned before and differs; nothing was changed")
        replace_files(folder, {path.name: data for path, data in pinned.items()})
        self._load_members()

    @property
    def party(self) -> Party:
        """This node's side of the secure sum."""
        if self._party is None:
            raise NodeError(f"{self.name} has pinned no members yet; nothing was answered")
        return self._party

    @property
    def roster(self) -> Roster:
        """The pinned members."""
        return self.party.roster

    @property
    def trust_policy(self) -> TrustPolicy:
        """Whose logs are cosigned here, and whose cosignatures make this node's log believable.

        That of the configuration; without one, the coordinator and more than half of the peers.

        Raises:
            NodeError: nobody was pinned yet.
            NoteError: the configured policy cannot be used.
        """
        path = self.config.witnessing.policy
        if path is not None:
            return read_trust_policy(path, log=self.identity.public)
        if self._coordinator is None:
            raise NodeError(f"{self.name} has pinned no coordinator yet; nothing was answered")
        members = [PublicIdentity(name=card.name, key=card.identity) for card in self.roster.cards]
        return TrustPolicy.of_federation(self._coordinator, members)

    def public_identity(self, member: str) -> PublicIdentity:
        """The pinned signing key of a member.

        Raises:
            PlanError: nobody of that name is pinned.
        """
        card = self.roster.card(member)
        if card is None:
            raise PlanError(f"{member} is not pinned in the roster of {self.name}")
        return PublicIdentity(name=card.name, key=card.identity)

    def approve(self, plan: Plan, *, grant: AccessGrant) -> bytes:
        """Sign a plan for the brand after checking what it claims.

        Args:
            plan: What the coordinator proposes.
            grant: An operator's, to approve this very plan.

        Returns:
            The signature, for the coordinator to collect.

        Raises:
            PlanError: the plan breaks a rule of this node; it was not signed.
            AccessDenied: the grant is for something else or too old; it was not signed.
        """
        self.verify_plan(plan)
        grant.verify(Action.APPROVE_PLAN, about=plan.digest, at=self.clock())
        return self._sign(plan, by=grant.request.actor)

    def approve_by_rule(self, plan: Plan) -> bytes:
        """Sign a plan that the rule `[approvals]` of the configuration allows; nobody is asked.

        Returns:
            The signature, as `approve` returns it.

        Raises:
            PlanError: there is no rule, or the plan breaks it or another rule of this node; it
                was not signed.
        """
        rule = self.config.approvals
        if rule is None:
            raise PlanError(f"{self.name} has no rule for plans; a person decides")
        self.verify_plan(plan)
        rule.verify(plan, budget=self.config.budgets[plan.purpose])
        return self._sign(plan, by="rule", rule=rule.digest)

    def _sign(self, plan: Plan, **who: JsonValue) -> bytes:
        signed = SignedPlan(plan=plan, signatures={}).signed_by(self.identity)
        folder = self.config.folder / "plans"
        folder.mkdir(exist_ok=True)
        self.record("plan.approved", plan=plan.digest, name=plan.name, **who)
        replace_files(folder, {plan.digest: signed.format()})
        return signed.signatures[self.name]

    def rotate_keys(self, *, grant: AccessGrant) -> str:
        """Change the key that the keys of data subjects are wrapped under; return its id.

        No leaf of the log changes, and nobody's permission. Interrupted, it is done again.

        Args:
            grant: An operator's, to rotate keys, about `WRAPPING`.

        Raises:
            AccessDenied: The grant is for something else or too old; nothing was changed.
            LogError: It could not be completed; rotate again.
        """
        at = self.clock()
        grant.verify(Action.ROTATE_KEYS, about=WRAPPING, at=at)
        return self.log.rotate_wrapping_key(at=at)

    def approved(self, plan_digest: str) -> SignedPlan:
        """A plan that this node signed, with the signatures it has seen.

        Raises:
            PlanError: it signed no such plan.
        """
        path = self.config.folder / "plans" / plan_digest
        known = plan_digest.isalnum() and path.is_file()
        if not known:
            raise PlanError(f"{self.name} has not approved this plan; no data was opened")
        signed = SignedPlan.parse(path.read_bytes())
        signed.verify({self.name: self.identity.public})
        return signed

    def remember_signatures(self, shown: SignedPlan) -> None:
        """Keep the other members' signatures of an approved plan, each after checking it.

        Raises:
            PlanError: a signature is not its member's; none was kept.
        """
        own = self.approved(shown.plan.digest)
        shown.verify({name: self.public_identity(name) for name in shown.signatures})
        signatures = {**own.signatures, **shown.signatures}
        both = SignedPlan(plan=own.plan, signatures=signatures)
        replace_files(self.config.folder / "plans", {own.plan.digest: both.format()})

    def charge(
        self, key: ReleaseKey, *, purpose: Purpose, release: GaussianRelease, digest: bytes
    ) -> int:
        """Charge a release to its purpose and bind the charge to the audit log, both durably.

        Returns:
            The entry of the log that says so.

        Raises:
            BudgetExhausted: the purpose has too little budget left.
            Replayed: the key was charged for another request.
        """
        self.ledger.reserve(key, purpose=purpose.value, release=release, request_digest=digest)
        budget = self.config.budgets[purpose]
        return self.record(
            "budget.charged",
            purpose=purpose.value,
            run=key.run,
            round=key.round,
            attempt=key.attempt,
            epsilon_spent=f"{self.ledger.spent(purpose.value).epsilon:.6f}",
            epsilon_budget=f"{budget.epsilon:.6f}",
            ledger_head=self.ledger.head,
        )

    def verify_plan(self, plan: Plan) -> None:
        """Check a plan against this node's own rules, now.

        Raises:
            PlanError: wrong members, keys, code, cost or floor, no budget, or expired.
        """
        if self.name not in plan.members:
            raise PlanError(f"{self.name} is no member of plan {plan.name!r}")
        if plan.roster_digest != self.roster.digest.hex():
            raise PlanError(f"plan {plan.name!r} names other keys than {self.name} has pinned")
        if plan.code_digest != code_digest():
            raise PlanError(f"plan {plan.name!r} is for other code than {self.name} runs")
        if self.ladder.digest not in plan.policies:
            raise PlanError(
                f"plan {plan.name!r} names other consent rules than {self.name} follows"
            )
        if plan.cohort_floor < self.config.cohort_floor:
            raise PlanError(
                f"the floor of {self.name} is {self.config.cohort_floor} brands, plan "
                f"{plan.name!r} has {plan.cohort_floor}"
            )
        if plan.purpose not in self.config.budgets:
            raise PlanError(f"{self.name} has no budget for {plan.purpose.value}")
        if plan.expires_at <= self.clock():
            raise PlanError(f"plan {plan.name!r} has expired")
        plan.verify_cost()

    def verify_affordable(self, plan: Plan) -> None:
        """Refuse to begin a run whose open rounds the purpose's budget no longer pays for.

        Raises:
            PlanError: too little is left; nothing was charged.
        """
        charged = {
            event.key.round
            for event in self.ledger.history()
            if event.key is not None and event.key.run == plan.digest
        }
        releases = plan.releases()
        needed = compose(
            release for number, release in enumerate(releases, start=1) if number not in charged
        )
        left = self.ledger.remaining(plan.purpose.value)
        if needed.mu > left.mu:
            raise PlanError(
                f"{self.name} has epsilon {left.epsilon:.4g} left for {plan.purpose.value}, and "
                f"plan {plan.name!r} costs {plan.epsilon():.4g}; nothing was charged"
            )

    @property
    def catalogue(self) -> Catalogue:
        """The public products."""
        if self._catalogue is None:
            self._catalogue = load_catalogue(self.config.products)
        return self._catalogue

    @property
    def table(self) -> CustomerTable:
        """The brand's customers, read at the first call and closed to all but permitted views."""
        if self._table is None:
            self._table = load_customers(
                self.config.transactions, columns=self.config.columns, catalogue=self.catalogue
            )
        return self._table

    def record(self, event: str, **fields: JsonValue) -> int:
        """Append an open event to the audit log, at this moment; return its entry's index."""
        return self.log.append({"type": event, "v": 1, "at": self.clock(), **fields})

    def withdraw(self, subject_id: str, purposes: Iterable[Purpose] | None = None) -> int:
        """Take a person's consent back, tell whoever got something, and start the clocks.

        Args:
            subject_id: The brand's own id of the person.
            purposes: Some purposes; None for everything.

        Returns:
            The log's entry.

        Raises:
            LogError: The log cannot be written; nothing was withdrawn and nobody is told.
        """
        with self.log.transaction():
            return self.withdrawals.withdraw(subject_id, purposes, at=self.clock())

    def object(self, subject_id: str, purposes: Iterable[Purpose] | None = None) -> int:
        """Record a person's objection in the same way."""
        with self.log.transaction():
            return self.withdrawals.object(subject_id, purposes, at=self.clock())

    def restrict(self, subject_id: str, purposes: Iterable[Purpose] | None = None) -> int:
        """Record in the same way that processing is restricted."""
        with self.log.transaction():
            return self.withdrawals.restrict(subject_id, purposes, at=self.clock())

    def erase(self, subject_id: str) -> int:
        """Destroy what is held about a person, after queueing the notices to whoever got it.

        Raises:
            LogError: The log cannot be written; erase again.
        """
        return self.withdrawals.erase(subject_id, at=self.clock())

    def share_handle(self, recipient: str, subject_id: str) -> str:
        """Return the random name to use for a person when their data goes to a recipient.

        Raises:
            NodeError: No such recipient is configured, or it gets nothing about single people.
            LogError: The log's database cannot be written.
        """
        known = self.config.spreading.recipients.get(recipient)
        if known is None or known.handle is not HandleMode.SHARED:
            raise NodeError(
                f"{recipient} is no recipient of {self.name} that knows single people; "
                "no handle was given"
            )
        return self.handles.give(recipient, self.register.subject_ref(subject_id))

    def learn_handle(self, sender: str, handle: str, subject_id: str) -> None:
        """Keep whom a sender means by a handle; what was withdrawn under it counts at once.

        Raises:
            NodeError: No such sender is configured.
            ValueError: The handle is somebody else's, or no handle; nothing was kept.
            LogError: The log cannot be written; nothing was kept.
        """
        if sender not in self.config.spreading.senders:
            raise NodeError(f"{sender} is no sender that {self.name} listens to; nothing was kept")
        if not handle or " " in handle:
            raise ValueError("a handle must be one word; nothing was kept")
        with self.log.transaction():
            waiting = self.handles.learn(sender, handle, self.register.subject_ref(subject_id))
            self.withdrawals.follow(subject_id, waiting, told_by=sender, at=self.clock())

    def lineage(self, subject_id: str) -> PersonLineage:
        """Tell which runs, rounds and models used a person; it stays at home."""
        return self.versions.lineage(self.register, subject_id, at=self.clock())

    def overdue_notices(self) -> list[Overdue]:
        """Return the notices that no recipient acknowledged in time, the oldest first."""
        limit_ms = self.config.spreading.propagation.limit_ms
        return self.outbox.overdue(at=self.clock(), limit_ms=limit_ms)

    def save_model(self, plan_digest: str, parameters: Parameters) -> Path:
        """Keep the model of an approved plan as `models/<plan>.npz`, and log what is in it.

        Raises:
            PlanError: The node signed no such plan.
            ModelOutOfUse: Another model of this plan was kept before.
        """
        purpose = self.approved(plan_digest).plan.purpose
        data = format_parameters(parameters)
        return self.versions.save(plan_digest, purpose, data, at=self.clock())

    def model(self, version: str) -> Parameters:
        """Hand out a model that may still be used.

        Raises:
            ModelOutOfUse: It is not one of this node, or must not be used any more.
        """
        return self.versions.load(version, at=self.clock())

    def retire_model(self, version: str, *, replaced_by: str = "") -> int:
        """Take a model out of use, for good, and stop its clocks.

        Raises:
            ModelOutOfUse: This step may not be taken; nothing was changed.
        """
        return self.versions.retire(version, replaced_by=replaced_by, at=self.clock())

    def publish(self) -> Path:
        """Write the audit log's offline copy, up to the newest note.

        Once a day it also logs a state root, from which dossiers are proved to be complete; it is
        published when a later note covers it.

        Raises:
            LogError: The log cannot be written or published.
        """
        newest = newest_state_root(self.log)
        if newest is None or self.clock() - newest.at >= STATE_ROOT_EVERY_MS:
            append_state_root(self.log, at=self.clock())
        folder = self.config.folder / "audit"
        self.log.publish(folder)
        return folder

    def _load_members(self) -> None:
        folder = self.config.folder
        roster = Roster.parse((folder / "roster").read_bytes())
        self._party = Party(self.name, self._agreement, roster, floor=self.config.cohort_floor)
        self._coordinator = PublicIdentity.parse((folder / "coordinator.vkey").read_text())

    def _verify_ledger(self) -> None:
        """The newest charge in the log must be in the ledger, or the ledger is an old copy."""
        for entry in reversed(self.log.entries()):
            if b'"budget.charged"' in entry.leaf:
                head = str(entry.value["ledger_head"])
                if not self.ledger.contains_head(head):
                    raise NodeError(
                        f"the ledger of {self.name} is older than its audit log: entry "
                        f"{entry.index} charges a release that it lacks; nothing was started"
                    )
                return


def read_trust_policy(path: Path, *, log: PublicIdentity) -> TrustPolicy:
    """Read a trust policy that knows the own log by its own key.

    Raises:
        NoteError: the file cannot be read, is no policy, or is that of other logs.
    """
    try:
        policy = TrustPolicy.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NoteError(f"the trust policy {path} cannot be read; nobody was asked") from error
    if policy.log(log.name) != log:
        raise NoteError(f"the trust policy {path} knows the log {log.name!r} by another key")
    return policy


def _budgets(config: ParticipantConfig) -> dict[str, Budget]:
    return {purpose.value: budget for purpose, budget in config.budgets.items()}


def load_key(path: Path) -> bytes:
    """Return the 32 secret bytes of a file; they are made when there is none.

    Raises:
        NodeError: The file is damaged or can be read by others.
    """
    try:
        _write_secret(path, secrets.token_bytes(32))
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32 or path.stat().st_mode & 0o077:
            raise NodeError(
                f"{path} must hold 32 bytes and be readable by its owner only; nothing was started"
            ) from None
        return key
    return path.read_bytes()


def _write_secret(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
