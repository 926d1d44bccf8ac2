"""The main job on real retail data: five brands, two joint models, one report.

Everything runs in this process through Flower's own ServerApp and ClientApp. What is printed
comes from the runs; nothing is prepared.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consent import (
    AssessmentError,
    IdentityError,
    LogError,
    NoteError,
    PolicyError,
    Profile,
    ProofError,
    Purpose,
    Refused,
    Role,
    TrustPolicy,
    UseKind,
    Verdict,
    policy_digest,
    verify_published,
)
from consent.published import bundle_file
from coordinator.host import Host
from coordinator.loopback import run_embedded
from coordinator.rounds import RoundRecord, Run, RunStatus
from coordinator.server_app import server_app
from models.churn import ChurnLogistic
from models.plan import Plan, PlanError, PlanRecipe, SignedPlan, code_digest
from models.recommendation import ItemGram
from participant.accounts import Session
from participant.client_app import client_app
from participant.config import ConfigError, ParticipantConfig, format_config, load
from participant.customers import DataError, load_catalogue
from participant.features import FEATURES
from participant.governance import activate_rules, appoint_sample, approve_plan, assess
from participant.node import Node, NodeError, system_clock
from privacy import Budget, LedgerError, Roster, RosterError
from tillpact.comparison import ChurnTrial, Comparison, ItemTrial, compare
from tillpact.sample.consortium import (
    ASSESSED,
    ASSESSMENT_SHA256,
    BRANDS,
    CATALOGUE,
    COLUMNS,
    EXPECTED_CUSTOMERS,
    HORIZON_DAYS,
    SNAPSHOT_DAYS,
    TEST_DAY,
    WITHDRAWN_PURPOSE,
    Brand,
    choices,
    withdrawals,
)

PLAN_BUDGET = Budget(epsilon=3.0, delta=1e-5)
NODE_BUDGET = Budget(epsilon=4.5, delta=1e-5)
WITHDRAW_AFTER_ROUND = 4
_DAY_MS = 86_400_000
_FLOOR, _COLLUDERS = 3, 1


class DemoError(Exception):
    """The demo did not show what it promises; its folder holds what it got to."""


# What can go wrong that is ours to foresee; each says in one sentence what did not happen.
FAULTS = (
    AssessmentError,
    ConfigError,
    DataError,
    DemoError,
    IdentityError,
    LedgerError,
    LogError,
    NodeError,
    NoteError,
    PlanError,
    PolicyError,
    ProofError,
    Refused,
    RosterError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A customer who withdrew in mid-run.

    Attributes:
        brand: Whose customer.
        pseudonym: First digits of the keyed pseudonym.
        rounds_used_before: Rounds up to the withdrawal whose permit included the customer.
        rounds_used_after: Rounds after it that did; must be empty.
    """

    brand: str
    pseudonym: str
    rounds_used_before: tuple[int, ...]
    rounds_used_after: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """One run of the demo and how good its model is.

    Attributes:
        plan: What was signed.
        run: What happened.
        comparison: Local, joint and central on the held-back customers.
    """

    plan: Plan
    run: Run
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the offline verifier says.

    Attributes:
        verdicts: One per node and one of the coordinator, by name.
        tamper_found: Whether each log was refused after one byte of a copy was changed.
    """

    verdicts: Mapping[str, Verdict]
    tamper_found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What left one node, by its own audit log.

    Attributes:
        kinds: Number of releases and their bytes, by what was summed.
        raw_rows: Releases that no query of a signed plan explains.
    """

    kinds: Mapping[str, tuple[int, int]]
    raw_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Everything that the report shows."""

    brands: tuple[Brand, ...]
    customers: Mapping[str, int]
    consenting: Mapping[str, int]
    churn: TrainedModel
    recommendation: TrainedModel
    left: Mapping[str, Left]
    bytes_sent: Mapping[str, int]
    epsilon_spent: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, str]
    withdrawal: Withdrawal
    audit: Audit
    cpu_seconds: float


class Consortium:
    """The sample's nodes and their coordinator, open in this process."""

    def __init__(self, nodes: Mapping[str, Node], host: Host, roster: Roster) -> None:
        """Take open nodes that have pinned this roster and coordinator."""
        self.nodes = nodes
        self.host = host
        self.roster = roster
        self._operators: dict[str, Session] = {}

    @classmethod
    def create(cls, folder: Path) -> "Consortium":
        """Make every node and the coordinator, with keys, choices and pinned members."""
        host = Host.create(folder / "coordinator", name="coordinator")
        nodes = {brand.name: _node(brand, folder / "nodes") for brand in BRANDS}
        roster = Roster(node.card for node in nodes.values())
        host.enrol(roster)
        for node in nodes.values():
            node.pin(roster, host.identity.public)
        return cls(nodes, host, roster)

    def close(self) -> None:
        """Close every node and the coordinator."""
        for node in self.nodes.values():
            node.close()
        self.host.close()

    @property
    def joining(self) -> list[Node]:
        """The nodes whose operators approve the demo's plans."""
        return [self.nodes[brand.name] for brand in BRANDS if brand.joins]

    def plan(self, name: str, recipe: PlanRecipe) -> Plan:
        """A plan for all members at the demo's budget."""
        return Plan(
            name=name,
            recipe=recipe,
            purpose=Purpose.FEDERATED_TRAINING,
            budget=PLAN_BUDGET,
            members=tuple(sorted(self.nodes)),
            roster_digest=self.roster.digest.hex(),
            cohort_floor=_FLOOR,
            colluders=_COLLUDERS,
            attempts=2,
            ring_bits=32,
            recipients=tuple(node.name for node in self.joining),
            code_digest=code_digest(),
            policies=(policy_digest(Profile.EU_GDPR),),
            expires_at=system_clock() + 7 * _DAY_MS,
        )

    def _operator(self, node: Node) -> Session:
        """A made-up operator of a brand, who reads plans before they are signed."""
        if node.name not in self._operators:
            self._operators[node.name] = appoint_sample(node, Role.OPERATOR)
        return self._operators[node.name]

    def train(self, plan: Plan, *, on_round: Callable[[RoundRecord], None]) -> Run:
        """Let the joining brands sign a plan, then run it over the embedded engine."""
        signatures = {
            node.name: approve_plan(node, self._operator(node), plan) for node in self.joining
        }
        self.host.propose(SignedPlan(plan=plan, signatures=signatures))
        run_embedded(
            server_app(self.host, on_round=on_round),
            {name: client_app(node) for name, node in self.nodes.items()},
            plan_digest=plan.digest,
        )
        _, run = self.host.run(plan.digest)
        if run.status is not RunStatus.COMPLETED:
            raise DemoError(f"the run of {plan.name} failed: {run.reason}")
        return run


def run_demo(folder: Path, console: Console) -> DemoResult:
    """Set up the consortium, train both models, check the logs.

    Args:
        folder: Where the nodes' folders go; an earlier demo there is replaced.
        console: Where progress is shown.

    Raises:
        DemoError: `folder` holds something else than an earlier demo, or a run failed.
    """
    started = time.process_time()
    _clear(folder)
    with console.status("Making five nodes and a coordinator: keys, choices, logs"):
        consortium = Consortium.create(folder)
    try:
        churn_recipe, item_recipe = recipes()
        churn_trial = ChurnTrial.of(consortium.joining, churn_recipe, test_day=TEST_DAY)
        consenting = _consenting(consortium)
        churn_plan = consortium.plan("churn, autumn 2011", churn_recipe)
        withdraw = _Withdrawer(consortium.nodes["lane"], churn_plan)
        with _progress(console, churn_plan) as on_round:
            churn_run = consortium.train(churn_plan, on_round=withdraw.after(on_round))
        item_plan = consortium.plan("recommendation, autumn 2011", item_recipe)
        with _progress(console, item_plan) as on_round:
            item_run = consortium.train(item_plan, on_round=on_round)
        with console.status("Comparing local, joint and central on held-back customers"):
            churn = compare(churn_trial, churn_recipe, PLAN_BUDGET, churn_run.parameters)
            item_trial = ItemTrial.of(consortium.joining, item_recipe, horizon_days=HORIZON_DAYS)
            items = compare(item_trial, item_recipe, PLAN_BUDGET, item_run.parameters)
        with console.status("Verifying every audit log offline"):
            audit = _audit(consortium)
        return DemoResult(
            brands=BRANDS,
            customers={name: len(node.table.subjects) for name, node in consortium.nodes.items()},
            consenting=consenting,
            churn=TrainedModel(plan=churn_plan, run=churn_run, comparison=churn),
            recommendation=TrainedModel(plan=item_plan, run=item_run, comparison=items),
            left={
                name: _left(node, (churn_plan, item_plan))
                for name, node in consortium.nodes.items()
            },
            bytes_sent=_added(churn_run.total_bytes_up, item_run.total_bytes_up),
            epsilon_spent={
                name: {
                    purpose.value: node.ledger.spent(purpose.value).epsilon
                    for purpose in node.config.budgets
                }
                for name, node in consortium.nodes.items()
            },
            refused={**churn_run.refusals, **item_run.refusals},
            withdrawal=withdraw.result(),
            audit=audit,
            cpu_seconds=time.process_time() - started,
        )
    finally:
        consortium.close()


def recipes() -> tuple[ChurnLogistic, ItemGram]:
    """The demo's two recipes at the plan's budget, over the public catalogue."""
    catalogue = load_catalogue(CATALOGUE)
    churn = ChurnLogistic.for_budget(
        PLAN_BUDGET,
        n_features=len(FEATURES),
        snapshot_days=SNAPSHOT_DAYS,
        horizon_days=HORIZON_DAYS,
        expected_customers=EXPECTED_CUSTOMERS,
        members=len(BRANDS),
    )
    items = ItemGram.for_budget(
        PLAN_BUDGET,
        n_items=len(catalogue.codes),
        catalogue_digest=catalogue.digest,
        as_of_day=TEST_DAY,
        expected_customers=EXPECTED_CUSTOMERS,
        members=len(BRANDS),
    )
    return churn, items


class _Withdrawer:
    """A customer of one brand who withdraws from everything after a given round."""

    def __init__(self, node: Node, plan: Plan) -> None:
        self._node, self._plan = node, plan
        allowed = node.register.mask(node.table.subjects, plan.purpose, at=node.clock())
        self._subject = node.table.subjects[int(allowed.argmax())]

    def after(self, on_round: Callable[[RoundRecord], None]) -> Callable[[RoundRecord], None]:
        """The same callback, and the withdrawal when its round has come."""

        def act(record: RoundRecord) -> None:
            on_round(record)
            if record.round == WITHDRAW_AFTER_ROUND:
                self._node.withdraw(self._subject)

        return act

    def result(self) -> Withdrawal:
        """In which rounds the customer was used, by the permits in the node's log."""
        rounds = [
            permit.use.round
            for permit in self._node.gate.uses_of(self._subject)
            if permit.use.kind is UseKind.TRAIN and permit.use.run == self._plan.digest
        ]
        return Withdrawal(
            brand=self._node.name,
            pseudonym=self._node.register.subject_ref(self._subject)[:12],
            rounds_used_before=tuple(r for r in rounds if r <= WITHDRAW_AFTER_ROUND),
            rounds_used_after=tuple(r for r in rounds if r > WITHDRAW_AFTER_ROUND),
        )


def _node(brand: Brand, folder: Path) -> Node:
    folder.mkdir(exist_ok=True)
    path = folder / f"{brand.name}.toml"
    path.write_text(
        format_config(
            ParticipantConfig(
                name=brand.name,
                folder=folder / brand.name,
                transactions=brand.transactions,
                products=CATALOGUE,
                columns=COLUMNS,
                profile=Profile.EU_GDPR,
                budgets={Purpose.FEDERATED_TRAINING: NODE_BUDGET},
                cohort_floor=_FLOOR,
            )
        ),
        encoding="utf-8",
    )
    node = Node.create(load(path))
    author = appoint_sample(node, Role.POLICY_AUTHOR)
    approver = appoint_sample(node, Role.POLICY_APPROVER)
    activate_rules(node, author=author, approver=approver)
    assess(
        node,
        dict.fromkeys(ASSESSED, ASSESSMENT_SHA256),
        author=author,
        approver=approver,
        valid_until=node.clock() + 365 * _DAY_MS,
    )
    now = node.clock()
    subjects = node.table.subjects
    node.register.record_many(choices(brand.name, subjects, now=now), at=now)
    for subject in withdrawals(brand.name, subjects):
        node.withdraw(subject, [WITHDRAWN_PURPOSE])
    return node


def _consenting(consortium: Consortium) -> dict[str, int]:
    return {
        name: int(
            node.register.mask(
                node.table.subjects, Purpose.FEDERATED_TRAINING, at=node.clock()
            ).sum()
        )
        for name, node in consortium.nodes.items()
    }


def _left(node: Node, plans: tuple[Plan, ...]) -> Left:
    explained = {query.name for plan in plans for query in plan.queries}
    kinds: dict[str, tuple[int, int]] = {}
    for entry in node.log.entries():
        event = entry.value
        if event.get("type") == "release.sent":
            count, size = kinds.get(str(event["kind"]), (0, 0))
            kinds[str(event["kind"])] = (count + 1, size + int(str(event["size_bytes"])))
    unexplained = sum(count for kind, (count, _) in kinds.items() if kind not in explained)
    return Left(kinds=kinds, raw_rows=unexplained)


def _audit(consortium: Consortium) -> Audit:
    policy = TrustPolicy.parse((consortium.host.folder / "trust.policy").read_text())
    verdicts, found = {}, []
    published = {name: node.publish() for name, node in consortium.nodes.items()}
    published[consortium.host.identity.name] = consortium.host.publish()
    for name, folder in published.items():
        verdicts[name] = verify_published(folder, policy)
        found.append(_tamper_found(folder, policy, index=verdicts[name].entries // 2))
    return Audit(verdicts=verdicts, tamper_found=all(found))


def _tamper_found(folder: Path, policy: TrustPolicy, *, index: int) -> bool:
    """Change one byte among the entries around `index` in a copy, and ask the verifier."""
    copy = folder.with_name("audit-tampered")
    shutil.copytree(folder, copy)
    try:
        path = bundle_file(copy, index)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        verify_published(copy, policy)
    except (LogError, NoteError, ProofError):
        return True
    else:
        return False
    finally:
        shutil.rmtree(copy)


def _added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in sorted({*first, *second})}


@contextmanager
def _progress(console: Console, plan: Plan) -> Iterator[Callable[[RoundRecord], None]]:
    columns = (
        TextColumn("{task.description:<30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[query]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(plan.name, total=len(plan.queries), query="")
        yield lambda record: progress.update(task, completed=record.round, query=record.name)


def _clear(folder: Path) -> None:
    marker = folder / "demo.json"
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise DemoError(f"{folder} holds something else than a demo; nothing was changed")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"made_by": "tillpact demo"}) + "\n")
