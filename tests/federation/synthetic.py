"""Small made-up brands with known content, and a federation of them in one folder."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from consent import (
    ConsentChoice,
    Notice,
    Profile,
    Purpose,
    Role,
    Tier,
    TrustPolicy,
    ladder_of,
    needing_assessment,
    policy_digest,
    preset,
)
from coordinator.host import Host
from coordinator.loopback import LoopbackGrid
from coordinator.rounds import RoundRecord, Run
from coordinator.strategy import Conductor
from models.churn import ChurnLogistic
from models.exchange import ReadyRequest, RoundRequest, Witnessed
from models.plan import Plan, PlanRecipe, SignedPlan, code_digest
from models.recommendation import ItemGram
from models.sums import noise_multiplier
from participant.accounts import NotSignedIn, Session
from participant.client_app import client_app
from participant.config import ParticipantConfig
from participant.features import FEATURES
from participant.governance import activate_rules, appoint_sample, approve_plan, assess
from participant.node import Node
from privacy import Budget, Roster

NAMES = ("amber", "birch", "cedar", "dune")
PURPOSE = Purpose.FEDERATED_TRAINING
DAY_MS = 86_400_000
LAST_DAY = 15_100
SNAPSHOT_DAYS = (14_950, 14_980)
HORIZON_DAYS = 60
PLAN_BUDGET = Budget(epsilon=1.0, delta=1e-5)
NODE_BUDGET = Budget(epsilon=4.0, delta=1e-5)
N_ITEMS = 80
COLUMNS = {
    "customer": "who",
    "invoice": "bill",
    "item": "sku",
    "quantity": "pieces",
    "price": "each",
    "time": "at",
}
_OPERATORS: dict[Path, Session] = {}
NOTHING_WITNESSED = Witnessed(tree_size=0, note="")


@dataclass
class Clock:
    """A clock that stands still until somebody moves it."""

    now: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def __call__(self) -> int:  # noqa: D102 - see the class
        return self.now


def date(day: int) -> str:
    return str(np.datetime64(int(day), "D"))


def write_products(path: Path) -> Path:
    pd.DataFrame(
        {
            "stock_code": [f"I{number:02}" for number in range(N_ITEMS)],
            "description": [f"blue thing number {number}" for number in range(N_ITEMS)],
        }
    ).to_csv(path, index=False)
    return path


def invoice_lines(*, seed: int, customers: int) -> pd.DataFrame:
    """Orders of loyal and of lapsing customers, some returns, some items of no catalogue."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(customers):
        loyal = draw.random() < 0.5
        last = LAST_DAY if loyal else int(draw.integers(14_700, LAST_DAY))
        gap = int(draw.integers(8, 40))
        for bill, day in enumerate(range(int(draw.integers(14_500, 14_700)), last, gap)):
            rows += [
                {
                    "who": f"c{number:03}",
                    "bill": f"b{number:03}-{bill}",
                    "sku": f"I{int(draw.integers(0, N_ITEMS + 2)):02}",
                    "pieces": -2 if bill % 7 == 6 else int(draw.integers(1, 9)),
                    "each": round(float(draw.uniform(1, 20)), 2),
                    "at": date(day),
                }
                for _ in range(int(draw.integers(1, 4)))
            ]
    return pd.DataFrame(rows)


def new_store() -> str | None:
    """The store of one more node; a fixture puts PostgreSQL in its place."""
    return None


def config_of(name: str, folder: Path, /, **changes: object) -> ParticipantConfig:
    config = ParticipantConfig(
        name=name,
        folder=folder / "nodes" / name,
        transactions=folder / f"{name}.csv",
        products=folder / "products.csv",
        columns=COLUMNS,
        profile=Profile.EU_GDPR,
        budgets={PURPOSE: NODE_BUDGET},
        cohort_floor=3,
        store=new_store(),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def govern(node: Node) -> None:
    """Two people put the shipped rules and the needed assessments in force, for a year."""
    author = appoint_sample(node, Role.POLICY_AUTHOR)
    approver = appoint_sample(node, Role.POLICY_APPROVER)
    activate_rules(node, author=author, approver=approver)
    needed = needing_assessment(ladder_of(node.config.profile))
    assess(
        node,
        dict.fromkeys(needed, "cd" * 32),
        author=author,
        approver=approver,
        valid_until=node.clock() + 365 * DAY_MS,
    )


def approve(node: Node, plan: Plan) -> bytes:
    """An operator of the brand signs a plan; the account is made when it is first needed."""
    node.verify_plan(plan)
    folder = node.config.folder
    if folder in _OPERATORS:
        # A node that was put back from a copy may not know the account.
        with contextlib.suppress(NotSignedIn):
            return approve_plan(node, _OPERATORS[folder], plan)
    # A process that was killed took its sessions along: whoever has the host begins anew.
    for known in node.accounts.all():
        if known.is_active and Role.OPERATOR in known.roles:
            node.accounts.revoke_by_host(known.account, at=node.clock())
    _OPERATORS[folder] = appoint_sample(node, Role.OPERATOR)
    return approve_plan(node, _OPERATORS[folder], plan)


def agree(node: Node, subjects: Iterable[str]) -> None:
    """Let people agree to everything that a bundled act may hold, for a year."""
    node.register.record_many(
        [
            ConsentChoice(
                subject_id=subject,
                given=preset(Tier.ADVANCED, profile=Profile.EU_GDPR),
                notice=Notice(id="made-up", version=1, language="en", sha256="ab" * 32),
                channel="app",
                expressed_at=node.clock() - 1,
                until=node.clock() + 365 * DAY_MS,
            )
            for subject in subjects
        ],
        at=node.clock(),
    )


def churn_recipe(*, gradient_rounds: int = 2, budget: Budget = PLAN_BUDGET) -> ChurnLogistic:
    return ChurnLogistic(
        n_features=len(FEATURES),
        snapshot_days=SNAPSHOT_DAYS,
        horizon_days=HORIZON_DAYS,
        expected_customers=200,
        second_moment_noise_multiplier=noise_multiplier(budget, share=0.3),
        gradient_noise_multiplier=noise_multiplier(budget, share=0.7, queries=gradient_rounds),
        gradient_rounds=gradient_rounds,
    )


class Wire(LoopbackGrid):
    """The embedded engine, with somebody on the line who sees and may change each answer."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        *,
        change: Callable[[str, Message, Message], Message | None] = lambda _name, _asked, got: got,
    ) -> None:
        super().__init__({name: client_app(node) for name, node in nodes.items()})
        self._change = change

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver one message at a time and pass on what somebody makes of each answer."""
        names = {node.node_id: node.name for node in self.get_nodes()}
        passed = []
        for message in messages:
            (got,) = super().send_and_receive([message], timeout=timeout)
            changed = self._change(names[message.metadata.dst_node_id], message, got)
            passed += [] if changed is None else [changed]
        return passed


class Federation:
    """Open nodes and their coordinator."""

    def __init__(self, folder: Path, nodes: Mapping[str, Node], host: Host, clock: Clock) -> None:
        self.folder, self.nodes, self.host, self.clock = folder, dict(nodes), host, clock

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        names: tuple[str, ...] = NAMES,
        customers: int = 40,
        budget: Budget = NODE_BUDGET,
    ) -> "Federation":
        """New nodes that have pinned each other; all but three customers of each agree."""
        clock = Clock()
        host = Host.create(folder / "coordinator", name="coordinator", clock=clock)
        write_products(folder / "products.csv")
        nodes = {}
        for seed, name in enumerate(names):
            config = config_of(name, folder, budgets={PURPOSE: budget})
            invoice_lines(seed=seed, customers=customers).to_csv(config.transactions, index=False)
            nodes[name] = node = Node.create(config, clock=clock)
            govern(node)
            agree(node, node.table.subjects[:-3])
        roster = Roster(node.card for node in nodes.values())
        host.enrol(roster)
        for node in nodes.values():
            node.pin(roster, host.identity.public)
        return cls(folder, nodes, host, clock)

    @classmethod
    def open(cls, folder: Path, *, budget: Budget = NODE_BUDGET) -> "Federation":
        """The federation that `create` made, after everything was closed or killed."""
        clock = Clock()
        host = Host(folder / "coordinator", clock=clock)
        nodes = {
            card.name: Node.open(
                config_of(card.name, folder, budgets={PURPOSE: budget}), clock=clock
            )
            for card in host.roster.cards
        }
        return cls(folder, nodes, host, clock)

    def close(self) -> None:
        """Close every node and the coordinator."""
        for node in self.nodes.values():
            node.close()
        self.host.close()

    def reopen(self, name: str) -> Node:
        """Close one node and open it again, as after a restart of its process."""
        node = self.nodes[name]
        node.close()
        self.nodes[name] = Node.open(node.config, clock=self.clock)
        return self.nodes[name]

    @property
    def policy(self) -> TrustPolicy:
        """What the coordinator wrote down for anybody who checks a log."""
        return TrustPolicy.parse((self.host.folder / "trust.policy").read_text())

    def plan(self, recipe: PlanRecipe | None = None, **changes: object) -> Plan:
        """A plan for all members that keeps every rule, but for `changes`."""
        plan = Plan(
            name="spring",
            recipe=recipe or churn_recipe(),
            purpose=PURPOSE,
            budget=PLAN_BUDGET,
            members=tuple(sorted(self.nodes)),
            roster_digest=self.host.roster.digest.hex(),
            cohort_floor=3,
            colluders=1,
            attempts=2,
            ring_bits=32,
            recipients=tuple(sorted(self.nodes)),
            code_digest=code_digest(),
            policies=(policy_digest(Profile.EU_GDPR),),
            expires_at=self.clock() + DAY_MS,
        )
        return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]

    def item_recipe(self, *, budget: Budget = PLAN_BUDGET) -> ItemGram:
        """Recommendation over the made-up catalogue."""
        catalogue = next(iter(self.nodes.values())).catalogue
        return ItemGram.for_budget(
            budget,
            n_items=len(catalogue.codes),
            catalogue_digest=catalogue.digest,
            as_of_day=SNAPSHOT_DAYS[-1],
            expected_customers=1_500,  # So many that every item gets co-occurrence.
        )

    def sign(self, plan: Plan, *, by: Iterable[str] | None = None) -> SignedPlan:
        """The plan with the approval of these members, or of all."""
        signers = list(self.nodes) if by is None else by
        return SignedPlan(
            plan=plan, signatures={name: approve(self.nodes[name], plan) for name in signers}
        )

    def lead(
        self,
        plan: Plan,
        *,
        grid: Grid | None = None,
        on_round: Callable[[RoundRecord], None] = lambda _: None,
    ) -> Run:
        """Let the coordinator run a proposed plan to its end, from wherever it stands."""
        grid = grid or Wire(self.nodes)
        Conductor(grid, self.host, plan.digest, on_round=on_round, timeout_s=60.0).lead()
        return self.host.run(plan.digest)[1]

    def train(
        self,
        plan: Plan,
        *,
        by: Iterable[str] | None = None,
        grid: Grid | None = None,
        on_round: Callable[[RoundRecord], None] = lambda _: None,
    ) -> Run:
        """Have a plan signed, propose it, and lead its run."""
        self.host.propose(self.sign(plan, by=by))
        return self.lead(plan, grid=grid, on_round=on_round)


def ready(signed: SignedPlan) -> ReadyRequest:
    return ReadyRequest(signed_plan=signed.format(), witnessed=NOTHING_WITNESSED)


def first_round(plan: Plan, **changes: object) -> RoundRequest:
    """What an honest coordinator asks first."""
    request = RoundRequest(
        plan_digest=plan.digest,
        round=1,
        attempt=1,
        cohort=plan.members,
        announced={},
        witnessed=NOTHING_WITNESSED,
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def gradient_round(plan: Plan, **changes: object) -> RoundRequest:
    """What an honest coordinator asks of a churn plan after the second moments."""
    recipe = plan.recipe
    assert isinstance(recipe, ChurnLogistic)
    announced = {"weights": np.zeros(recipe.dimension)}
    return first_round(plan, **{"round": 2, "announced": announced, **changes})


def ask(node: Node, kind: str, record: RecordDict) -> RecordDict:
    """Send one message through a node's ClientApp and bring back what it says."""
    grid = LoopbackGrid({node.name: client_app(node)})
    (info,) = grid.get_nodes()
    message = grid.create_message(record, kind, info.node_id, "")
    (got,) = grid.send_and_receive([message])
    return got.content


def events(node: Node, *, after: int = 0) -> list[dict[str, object]]:
    """The open events of a node's log from an entry on."""
    return [
        dict(entry.value) for entry in node.log.entries(after) if entry.value.get("k") != "sealed"
    ]


def kinds(node: Node, *, after: int = 0) -> list[str]:
    return [str(event["type"]) for event in events(node, after=after)]
