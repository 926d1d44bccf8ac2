import json
from pathlib import Path

import pytest
from rich.console import Console

from consent import Purpose, TrustPolicy, UseKind, verify_published
from coordinator.rounds import RunStatus
from participant.config import load
from participant.node import Node
from privacy import compose, epsilon_of
from tillpact.demo import NODE_BUDGET, PLAN_BUDGET, DemoError, run_demo

from .conftest import Demo

JOINED = {"depot", "harbour", "kontor", "lane"}


def test_both_models_finish_every_round_with_the_brands_that_approved(demo: Demo) -> None:
    for model in (demo.result.churn, demo.result.recommendation):
        assert model.run.status is RunStatus.COMPLETED
        assert [record.round for record in model.run.rounds] == list(
            range(1, len(model.plan.queries) + 1)
        )
        assert {name for record in model.run.rounds for name in record.cohort} == JOINED


def test_each_model_keeps_epsilon_three_and_the_ledger_composes_both(demo: Demo) -> None:
    plans = (demo.result.churn.plan, demo.result.recommendation.plan)
    both = compose([release for plan in plans for release in plan.releases()])
    together = epsilon_of(both.mu, delta=NODE_BUDGET.delta, slack_delta=both.slack_delta)

    for plan in plans:
        assert 0.99 * PLAN_BUDGET.epsilon < plan.epsilon() <= PLAN_BUDGET.epsilon
    for brand, spent in demo.result.epsilon_spent.items():
        expected = together if brand in JOINED else 0.0
        assert spent[Purpose.FEDERATED_TRAINING] == pytest.approx(expected, rel=1e-9)
    assert together < 2 * PLAN_BUDGET.epsilon


def test_the_brand_that_did_not_approve_is_refused_by_its_own_node(demo: Demo) -> None:
    assert demo.result.refused == {
        "maison": "maison has not approved this plan; no data was opened"
    }
    assert demo.result.left["maison"].kinds == {}


def test_the_customer_who_withdraws_is_used_before_and_never_after(demo: Demo) -> None:
    withdrawal = demo.result.withdrawal

    assert withdrawal.rounds_used_before == (1, 2, 3, 4)
    assert withdrawal.rounds_used_after == ()


def test_the_withdrawn_customer_is_in_no_later_permit_of_any_kind(demo: Demo) -> None:
    with Node.open(load(demo.folder / "nodes" / "lane.toml")) as node:
        withdrawn = [
            subject
            for subject in node.table.subjects
            if node.register.subject_ref(subject).startswith(demo.result.withdrawal.pseudonym)
        ]
        permits = node.gate.uses_of(withdrawn[0])

    last = max(permit.index for permit in permits)
    assert len(withdrawn) == 1
    assert {p.use.round for p in permits if p.use.kind is UseKind.TRAIN} == {1, 2, 3, 4}
    assert all(permit.use.run == demo.result.churn.plan.digest for permit in permits[-4:])
    assert last < demo.result.audit.verdicts["lane"].entries


def test_about_four_in_five_customers_agree_to_federated_training(demo: Demo) -> None:
    customers = sum(demo.result.customers.values())

    assert 0.77 < sum(demo.result.consenting.values()) / customers < 0.83


def test_joint_models_are_useful_and_no_better_than_the_data_allows(demo: Demo) -> None:
    churn = demo.result.churn.comparison
    items = demo.result.recommendation.comparison

    # Wide bounds: noise is drawn anew in each run. `make bench-joint` has the exact figures.
    assert 0.755 < churn.joint["overall"].value < churn.central["overall"].value + 0.01
    assert 0.075 < items.joint["overall"].value < items.central["overall"].value + 0.005
    assert items.joint["kontor"].value > items.local["kontor"].value


def test_every_log_verifies_offline_with_public_keys_only(demo: Demo) -> None:
    policy = TrustPolicy.parse((demo.folder / "coordinator" / "trust.policy").read_text())

    for name, verdict in demo.result.audit.verdicts.items():
        folder = demo.folder if name == "coordinator" else demo.folder / "nodes"
        assert verify_published(folder / name / "audit", policy) == verdict
        assert set(verdict.cosigners) == {"coordinator", *demo.result.customers}
    assert set(demo.result.audit.verdicts) == {"coordinator", *demo.result.customers}
    assert demo.result.audit.tamper_found


def test_the_log_covers_every_release_up_to_the_end_of_the_last_run(demo: Demo) -> None:
    for name in JOINED:
        events = demo.result.audit.verdicts[name].events
        assert events["release.sent"] == events["budget.charged"] == 11
        assert events["model.received"] == 2


def test_no_file_for_others_holds_a_customer_id_or_a_secret(demo: Demo) -> None:
    secrets = [path.read_bytes() for path in demo.folder.rglob("pseudonym.key")]
    with Node.open(load(demo.folder / "nodes" / "kontor.toml")) as node:
        subjects = node.table.subjects
    public = [
        demo.folder / "report.json",
        demo.folder / "report.html",
        *(demo.folder / "nodes" / "kontor" / "audit").rglob("*"),
        *(demo.folder / "coordinator").rglob("*"),
    ]

    for path in filter(Path.is_file, public):
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets)
        assert not any(f'"{subject}"'.encode() in data for subject in subjects)


def test_a_second_demo_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")

    with pytest.raises(DemoError, match="holds something else than a demo; nothing was changed"):
        run_demo(mine, Console(quiet=True))

    assert (mine / "notes.txt").read_text() == "keep me"


def test_the_report_has_what_a_machine_needs(demo: Demo) -> None:
    report = json.loads((demo.folder / "report.json").read_text())

    assert report["schema"] == "tillpact-demo/1"
    assert report["engine"] == "embedded"
    assert {"name", "customers", "consenting"} <= set(report["brands"][0])
    for topic, key in (("churn", "auc"), ("recommendation", "recall_at_20")):
        model = report[topic]
        assert {"epsilon", "delta", "rounds", "local", "joint", "central"} <= set(model)
        for kind in ("local", "joint", "central"):
            assert model[kind]["low"] < model[kind][key] < model[kind]["high"]
            assert set(model[kind]["brands"]) == JOINED
    assert report["raw_rows_sent"] == 0
    assert set(report["bytes_sent"]) == {*JOINED, "maison"}
    assert report["refused"] == [
        {"brand": "maison", "reason": "maison has not approved this plan; no data was opened"}
    ]
    assert report["withdrawn"]["rounds_used_after"] == []
    assert report["audit"]["verified"]
    assert report["audit"]["tamper_found"]
    assert report["audit"]["entries"] > 5000
    assert report["cpu_seconds"] > 0


def test_the_page_is_one_file_that_loads_nothing(demo: Demo) -> None:
    page = (demo.folder / "report.html").read_text()

    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "<link" not in page
    assert page.count("<svg viewBox") == 2


def test_the_terminal_shows_the_tables_a_retailer_reads(demo: Demo) -> None:
    for words in ("Churn: AUC", "Recommendation: Recall@20", "Raw rows sent: 0", "Kontor Nord"):
        assert words in demo.printed
