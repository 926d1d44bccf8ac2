"""One brand's node: its keys, its memory, what it has approved, and its data.

Everything a node must not forget lives in one folder. Opening a node checks that none of it
was put back from an older copy. Data is read only when somebody asks for rows.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from consent import (
    Access,
    Assessments,
    Gate,
    Identity,
    IdentityError,
    JsonValue,
    Log,
    LogError,
    PublicIdentity,
    Purpose,
    Register,
    Rulebook,
    TrustPolicy,
    append_state_root,
    ladder_of,
    needing_assessment,
    newest_state_root,
    policy_digest,
)
from consent.cedar import CedarEngine
from consent.durable import replace_files
from consent.policy import SHIPPED
from models.plan import Plan, PlanError, SignedPlan, code_digest
from models.sums import format_parameters
from participant.config import ParticipantConfig
from participant.customers import Catalogue, CustomerTable, load_catalogue, load_customers
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
        assessments: Impact assessments, without which the gate opens no purpose that needs one.
        gate: The only way to rows.
        ledger: What each purpose has spent.
    """

    def __init__(self, config: ParticipantConfig, *, clock: Clock, log: Log) -> None:
        """Take the parts that `create` and `open` prepared."""
        folder = config.folder
        self.config = config
        self.clock = clock
        self.log = log
        self.identity = Identity.load(folder / "identity.key")
        self.register = Register(
            log,
            pseudonym_key=(folder / "pseudonym.key").read_bytes(),
            profile=config.profile,
        )
        self.rulebook = Rulebook(log)
        self.access = Access(CedarEngine(SHIPPED), log, activated=self.rulebook.active_digest)
        needed = needing_assessment(ladder_of(config.profile))
        self.assessments = Assessments(log, needed=needed)
        self.gate = Gate(
            self.register,
            log,
            policy_digest=policy_digest(config.profile),
            checks=(self.assessments,),
        )
        self.ledger = Ledger.open(folder / "ledger.sqlite", _budgets(config))
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
        except (OSError, IdentityError, LedgerError, LogError, RosterError) as error:
            raise NodeError(f"the node in {config.folder} cannot be opened: {error}") from error

    @classmethod
    def _of_parts(cls, config: ParticipantConfig, *, clock: Clock, log: Log) -> "Node":
        node = cls(config, clock=clock, log=log)
        try:
            node._verify_ledger()
            if (config.folder / "roster").exists():
                node._load_members()
        except BaseException:
            node.ledger.close()
            raise
        return node

    def close(self) -> None:
        """Close log and ledger; a second time does nothing."""
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
        """Whose signatures make this node's own log believable."""
        if self._coordinator is None:
            raise NodeError(f"{self.name} has pinned no coordinator yet; nothing was answered")
        return TrustPolicy(
            logs=(self.identity.public,),
            witnesses={self._coordinator.name: self._coordinator},
            groups={},
            quorum=self._coordinator.name,
        )

    def public_identity(self, member: str) -> PublicIdentity:
        """The pinned signing key of a member.

        Raises:
            PlanError: nobody of that name is pinned.
        """
        card = self.roster.card(member)
        if card is None:
            raise PlanError(f"{member} is not pinned in the roster of {self.name}")
        return PublicIdentity(name=card.name, key=card.identity)

    def approve(self, plan: Plan) -> bytes:
        """Sign a plan, by hand of the brand's engineer, after checking what it claims.

        Returns:
            The signature, for the coordinator to collect.

        Raises:
            PlanError: the plan breaks a rule of this node; it was not signed.
        """
        self.verify_plan(plan)
        signed = SignedPlan(plan=plan, signatures={}).signed_by(self.identity)
        folder = self.config.folder / "plans"
        folder.mkdir(exist_ok=True)
        self.record("plan.approved", plan=plan.digest, name=plan.name)
        replace_files(folder, {plan.digest: signed.format()})
        return signed.signatures[self.name]

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
        if policy_digest(self.config.profile) not in plan.policies:
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

    def save_model(self, plan_digest: str, parameters: Mapping[str, NDArray[np.float64]]) -> Path:
        """Keep a received model as `models/<plan>.npz`."""
        folder = self.config.folder / "models"
        name = f"{plan_digest}.npz"
        replace_files(folder, {name: format_parameters(parameters)})
        return folder / name

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


def _budgets(config: ParticipantConfig) -> dict[str, Budget]:
    return {purpose.value: budget for purpose, budget in config.budgets.items()}


def _write_secret(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
