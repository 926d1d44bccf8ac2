"""Whole federated rounds over the embedded engine, seen from outside."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray
from scipy import stats

from consent import PermittedView, Profile, Use, UseKind, verify_published
from coordinator.host import Host
from coordinator.rounds import RoundRecord, RunStatus
from models.churn import ChurnRows
from models.evaluation import auc
from models.exchange import ROUND, RoundRequest, parse_reply
from models.plan import Plan
from models.recommendation import ItemRows
from models.sums import fit
from participant.config import ParticipantConfig
from participant.node import Node
from privacy import Budget, Roster, Session, total
from tests.federation.synthetic import (
    HORIZON_DAYS,
    NAMES,
    NODE_BUDGET,
    PURPOSE,
    SNAPSHOT_DAYS,
    Clock,
    Federation,
    Wire,
    churn_recipe,
    events,
    govern,
)
from tillpact.sample import consortium

# As weak as the sampler's slack lets a plan promise: enough to see the model through the noise.
LOUD = Budget(epsilon=18.0, delta=0.9)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    made = Federation.create(folder, customers=120, budget=Budget(epsilon=18.2, delta=0.95))
    yield made
    made.close()


def view_of(node: Node) -> PermittedView:
    """What a round of training may see, for the comparison."""
    return node.gate.open(
        PURPOSE, node.table.subjects, use=Use(kind=UseKind.EVALUATE), at=node.clock()
    )


def churn_rows(node: Node) -> ChurnRows:
    return node.table.churn_rows(
        view_of(node), snapshot_days=SNAPSHOT_DAYS, horizon_days=HORIZON_DAYS
    )


def item_rows(node: Node, plan: Plan) -> ItemRows:
    recipe = plan.recipe
    return node.table.item_rows(
        view_of(node),
        before_day=recipe.as_of_day,  # type: ignore[union-attr]
        half_life_days=recipe.half_life_days,  # type: ignore[union-attr]
    )


class Transcript:
    """All that the coordinator asks and gets, as it passes on the wire."""

    def __init__(self, federation: Federation) -> None:
        self.asked: dict[tuple[int, int], RoundRequest] = {}
        self.masked: dict[tuple[int, int], dict[str, bytes]] = {}
        self.wire = Wire(federation.nodes, change=self._see)

    def _see(self, name: str, message: Message, got: Message) -> Message:
        if message.metadata.message_type == ROUND:
            request = RoundRequest.from_record(message.content)
            reply = parse_reply(got.content)
            key = request.round, request.attempt
            self.asked[key] = request
            self.masked.setdefault(key, {})[name] = reply.masked  # type: ignore[union-attr]
        return got

    def session(self, plan: Plan, key: tuple[int, int]) -> Session:
        """The secure sum of one attempt, rebuilt from what was asked."""
        request = self.asked[key]
        return Session(
            run=plan.digest,
            round=request.round,
            attempt=request.attempt,
            cohort=request.cohort,
            terms_digest=request.digest,
            dimension=plan.queries[request.round - 1].dimension,
            ring_bits=32,
        )


def true_answers(
    federation: Federation, plan: Plan, request: RoundRequest
) -> dict[str, NDArray[np.int64]]:
    """What each brand would have sent without noise and masks."""
    rows = churn_rows if plan.recipe.KIND == "churn.logistic" else lambda n: item_rows(n, plan)
    return {
        name: plan.recipe.answer(request.round - 1, request.announced, rows(node))  # type: ignore[arg-type, operator]
        for name, node in federation.nodes.items()
    }


@pytest.fixture(scope="module")
def transcripts(federation: Federation) -> list[tuple[Plan, Transcript]]:
    """One completed run of each recipe at the usual budget."""
    plans = [
        federation.plan(name="churn"),
        federation.plan(federation.item_recipe(), name="recommendation"),
    ]
    result = []
    for plan in plans:
        transcript = Transcript(federation)
        run = federation.train(plan, grid=transcript.wire)
        assert (run.status, run.refusals) == (RunStatus.COMPLETED, {})
        result.append((plan, transcript))
    return result


def test_each_joint_sum_is_the_pooled_sum_under_exactly_the_planned_noise(
    federation: Federation, transcripts: list[tuple[Plan, Transcript]]
) -> None:
    """False alarm: below 1e-6 for each of the five sums (chi-squared, both tails)."""
    for plan, transcript in transcripts:
        for key, request in transcript.asked.items():
            query = plan.queries[request.round - 1]
            joint = total(transcript.session(plan, key), transcript.masked[key])
            pooled = sum(true_answers(federation, plan, request).values())
            # Four brands draw so much that any three of them would be enough.
            noise_std = query.noise_std(fraction=np.sqrt(4 / 3))
            squares = float(np.sum(((joint - pooled) / noise_std) ** 2))

            assert 1e-6 / 2 < stats.chi2.cdf(squares, query.dimension) < 1 - 1e-6 / 2, query.name


def test_joint_churn_agrees_with_a_model_fitted_on_pooled_rows(federation: Federation) -> None:
    plan = federation.plan(churn_recipe(gradient_rounds=8, budget=LOUD), name="loud", budget=LOUD)

    run = federation.train(plan)

    rows = ChurnRows.pooled([churn_rows(node) for node in federation.nodes.values()])
    recipe = churn_recipe(gradient_rounds=8, budget=LOUD)
    central = fit(recipe, rows, source=None)
    ours, theirs = (
        recipe.probability(parameters, rows.features, rows.day)
        for parameters in (run.parameters, central)
    )
    assert run.status is RunStatus.COMPLETED
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97
    assert auc(rows.churned, theirs) > 0.85
    assert abs(auc(rows.churned, ours) - auc(rows.churned, theirs)) < 0.03


def test_joint_item_weights_are_a_usable_model(
    federation: Federation, transcripts: list[tuple[Plan, Transcript]]
) -> None:
    plan, _ = transcripts[1]
    _, run = federation.host.run(plan.digest)

    size = plan.recipe.catalogue_size  # type: ignore[union-attr]
    assert run.parameters["item_weights"].shape == (size, size)
    assert not run.parameters["item_weights"].diagonal().any()
    assert len(set(run.parameters["catalogue"])) == size
    for name, node in federation.nodes.items():
        with np.load(node.config.folder / "models" / f"{plan.digest}.npz") as arrays:
            np.testing.assert_array_equal(
                arrays["item_weights"], run.parameters["item_weights"], err_msg=name
            )


def test_what_the_coordinator_sees_of_one_brand_is_uniform_also_for_who_knows_the_answer(
    federation: Federation, transcripts: list[tuple[Plan, Transcript]]
) -> None:
    """Known plaintext: without the true answer the rest is still every byte equally often.

    False alarm: 4 brands, below 1e-6 each (chi-squared over 256 byte values).
    """
    left: dict[str, list[bytes]] = {name: [] for name in NAMES}
    for plan, transcript in transcripts:
        for key, request in transcript.asked.items():
            for name, answer in true_answers(federation, plan, request).items():
                masked = transcript.masked[key][name]
                words = np.frombuffer(masked[len(masked) - 4 * answer.size :], dtype="<u4")
                rest = words - answer.astype("<u4")
                assert not np.array_equal(words, answer.astype("<u4"))
                if answer.size > 100 and answer.std() > 0:
                    seen = words.astype(np.int32).astype(float)
                    assert abs(np.corrcoef(seen, answer)[0, 1]) < 6 / np.sqrt(answer.size)
                left[name] += [words.tobytes(), rest.tobytes()]
    for name, parts in left.items():
        for every_other in (parts[::2], parts[1::2]):
            data = np.frombuffer(b"".join(every_other), dtype=np.uint8)
            assert data.size > 256 * 5
            _, chance = stats.chisquare(np.bincount(data, minlength=256))
            assert chance > 1e-6, name


def test_the_sum_of_all_but_one_brand_is_uniform_too(
    transcripts: list[tuple[Plan, Transcript]],
) -> None:
    plan, transcript = transcripts[0]
    key = (1, 1)
    header = len(transcript.masked[key]["amber"]) - 4 * plan.queries[0].dimension
    words = [
        np.frombuffer(transcript.masked[key][name][header:], dtype="<u4") for name in NAMES[:3]
    ]

    partial = np.frombuffer((words[0] + words[1] + words[2]).tobytes(), dtype=np.uint8)

    _, chance = stats.chisquare(np.bincount(partial, minlength=256))
    assert chance > 1e-6


def test_every_log_verifies_and_tells_each_release(
    federation: Federation, transcripts: list[tuple[Plan, Transcript]]
) -> None:
    for name, node in federation.nodes.items():
        verdict = verify_published(node.publish(), federation.policy)
        assert set(verdict.cosigners) == {"coordinator", *NAMES}
        assert verdict.events["release.sent"] == verdict.events["budget.charged"]
        sent = [event for event in events(node) if event["type"] == "release.sent"]
        for plan, transcript in transcripts:
            for (number, attempt), masked in transcript.masked.items():
                (event,) = [
                    e
                    for e in sent
                    if (e["run"], e["round"], e["attempt"]) == (plan.digest, number, attempt)
                ]
                assert event["size_bytes"] == len(masked[name])


def test_a_withdrawal_in_mid_run_counts_from_the_next_round_on(federation: Federation) -> None:
    node = federation.nodes["cedar"]
    allowed = node.register.mask(node.table.subjects, PURPOSE, at=node.clock())
    subject = node.table.subjects[int(allowed.argmax())]
    plan = federation.plan(name="withdrawal")

    def withdraw(record: RoundRecord) -> None:
        if record.round == 2:
            node.register.withdraw(subject, at=node.clock())

    run = federation.train(plan, on_round=withdraw)

    rounds = [p.use.round for p in node.gate.uses_of(subject) if p.use.run == plan.digest]
    assert run.status is RunStatus.COMPLETED
    assert rounds == [1, 2]


ONE_ROUND = textwrap.dedent(
    """
    import socket, sys
    from pathlib import Path

    contacted = []

    def refuse(self, address, *rest):
        contacted.append(address)
        raise ConnectionRefusedError(f"nothing may be contacted: {address}")

    def look_up(*arguments, **_):
        contacted.append(arguments)
        raise socket.gaierror("nothing may be looked up")

    socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
    socket.getaddrinfo = socket.create_connection = look_up
    from tests.federation.synthetic import Federation, churn_recipe

    federation = Federation.create(Path(sys.argv[1]), customers=15)
    run = federation.train(federation.plan(churn_recipe(gradient_rounds=1)))
    federation.close()
    print(run.status, len(run.rounds), contacted)
    """
)


def test_a_whole_run_contacts_nothing_at_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_ROUND, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "completed 2 []\n", done.stderr


def test_the_shipped_sample_runs_through_the_same_door(tmp_path: Path) -> None:
    """Only this test reads the sample: three of its brands."""
    clock = Clock()
    nodes = {}
    three = {"harbour", "kontor", "maison"}
    for brand in [brand for brand in consortium.BRANDS if brand.name in three]:
        config = ParticipantConfig(
            name=brand.name,
            folder=tmp_path / brand.name,
            transactions=brand.transactions,
            products=consortium.CATALOGUE,
            columns=consortium.COLUMNS,
            profile=Profile.EU_GDPR,
            budgets={PURPOSE: NODE_BUDGET},
            cohort_floor=3,
        )
        nodes[brand.name] = node = Node.create(config, clock=clock)
        govern(node)
        people = node.table.subjects
        chosen = consortium.choices(brand.name, people, now=clock())
        node.register.record_many(chosen, at=clock())
    host = Host.create(tmp_path / "coordinator", name="coordinator")
    roster = Roster(node.card for node in nodes.values())
    host.enrol(roster)
    recipe = dataclasses.replace(
        churn_recipe(gradient_rounds=1), snapshot_days=consortium.SNAPSHOT_DAYS
    )
    for node in nodes.values():
        node.pin(roster, host.identity.public)
    federation = Federation(tmp_path, nodes, host, clock)

    run = federation.train(federation.plan(recipe))

    assert (run.status, len(run.rounds)) == (RunStatus.COMPLETED, 2)
    federation.close()
