import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consent import Identity
from participant.config import format_config
from participant.node import Node
from participant.partners import PropagationSettings
from participant.release import answer, join
from tests.federation.synthetic import DAY_MS, Federation, first_round, ready
from tests.participant.spreading import SHARING, agree_to, created, line, open_with, recipient
from tests.participant.test_versions import deliver
from tillpact.cli import app

HOUR_MS = 3_600_000


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation.create(tmp_path, names=("amber", "birch", "cedar"), customers=15)
    yield made
    made.close()


def run(*arguments: object, given: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments], input=given)
    return done.exit_code, done.stdout, done.stderr


def written(node: Node) -> Path:
    path = node.config.folder.parent / f"{node.name}.toml"
    path.write_text(format_config(node.config), encoding="utf-8")
    return path


def test_deliver_sends_once_and_says_how_it_went(tmp_path: Path) -> None:
    with line() as wire:
        birch = created("birch", tmp_path)
        amber = open_with(
            created("amber", tmp_path), recipients=(recipient(birch.identity.public, wire.url),)
        )
        birch = open_with(birch, senders=(amber.identity.public,))
        amber.share_handle("birch", "anna")
        amber.withdraw("anna")
        config = written(amber)
        amber.close()

        assert run("consent", "deliver", config) == (
            1,
            "0 notices were acknowledged, 1 were not and are tried again.\n",
            "",
        )
        amber = Node.open(amber.config)
        amber.withdraw("anna")
        amber.close()
        wire.node = birch
        code, out, _ = run("consent", "deliver", config, "--json")
        birch.close()

    assert (code, json.loads(out)["data"]) == (0, {"acked": 1, "failed": 0, "raised": 0})


def test_overdue_tells_what_waits_too_long_beside_a_node_that_is_open(tmp_path: Path) -> None:
    past = time.time_ns() // 1_000_000 - 2 * DAY_MS
    key = Identity.generate("birch").public
    with created("amber", tmp_path, clock=lambda: past) as first:
        amber = open_with(first, recipients=(recipient(key, "https://birch.example"),))
        config = written(amber)
        assert run("consent", "overdue", config) == (
            0,
            "No notice waits longer than 24 hours for its acknowledgement.\n",
            "",
        )
        amber.share_handle("birch", "anna")
        agree_to(amber, "anna")
        amber.withdraw("anna", [SHARING])

        code, out, _ = run("consent", "overdue", config)
        document = json.loads(run("consent", "overdue", config, "--json")[1])["data"]
        amber.close()

    assert code == 1
    assert out.startswith("birch: notice ")
    assert out.endswith(", 0 attempts\n")
    (late,) = document["overdue"]
    assert (late["recipient"], late["queued_at"]) == ("birch", past)


def test_lineage_and_models_in_plain_words(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()
    join(node, ready(federation.sign(plan)))
    answer(node, first_round(plan))
    deliver(node, plan)
    subject = node.table.subjects[0]
    config = written(node)
    node.withdraw(subject)
    node.close()

    code, out, err = run("consent", "lineage", config, "--subject", "-", given=f"{subject}\n")
    assert (code, err) == (0, "")
    assert f"Run {plan.digest}, round 1: a sum with them in it was sent." in out
    assert f"Model {plan.digest} learned from them, in use, to be trained again by 20" in out
    assert "What to do: train a model without the people who withdrew, then retire this." in out
    assert subject not in out
    document = json.loads(
        run("consent", "lineage", config, "--subject", "-", "--json", given=subject)[1]
    )["data"]
    assert document["rounds"] == [{"run": plan.digest, "round": 1, "sent": True}]
    assert document["models"][0]["clocks"]["remedy"] == "retrain"
    file = federation.folder / "who.txt"
    file.write_text("nobody\n")
    assert run("consent", "lineage", config, "--subject", file)[1] == "No round used this person.\n"
    assert run("consent", "lineage", config, "--subject", "-", given=" ")[0] == 2

    assert run("model", "ls", config)[0] == 0
    code, _, err = run("model", "retire", config, plan.digest, "--replaced-by", plan.digest)
    assert (code, "cannot take the place of" in err) == (1, True)
    code, out, _ = run("model", "retire", config, plan.digest)
    assert (code, out.startswith(f"Retired: {plan.digest}, entry ")) == (0, True)
    code, out, _ = run("model", "ls", config, "--json")
    assert json.loads(out)["data"]["models"][0]["clocks"] is None
    out = run("consent", "lineage", config, "--subject", "-", given=subject)[1]
    assert "learned from them, retired 20" in out
    federation.nodes["amber"] = Node.open(node.config, clock=federation.clock)


def test_a_model_that_had_to_go_is_exit_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = time.time_ns() - 31 * DAY_MS * 1_000_000
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: long_ago)
        federation = Federation.create(tmp_path, names=("amber", "birch", "cedar"), customers=15)
        node, plan = federation.nodes["amber"], federation.plan()
        join(node, ready(federation.sign(plan)))
        answer(node, first_round(plan))
        deliver(node, plan)
        subject = node.table.subjects[0]
        node.withdraw(subject)
        federation.close()
    config = written(node)

    code, out, _ = run("model", "ls", config)
    assert (code, "and out of use by 20" in out) == (1, True)
    out = run("consent", "lineage", config, "--subject", "-", given=subject)[1]
    assert "What to do: retire this model; the time to train another one has run out." in out


def test_a_node_that_is_open_elsewhere_is_exit_2(tmp_path: Path) -> None:
    with created("amber", tmp_path) as node:
        for command in (
            ("consent", "deliver"),
            ("model", "ls"),
        ):
            code, _, err = run(*command, written(node))
            assert (code, "is open for writing elsewhere" in err) == (2, True)
    assert run("consent", "overdue", tmp_path / "no.toml")[0] == 2
    assert PropagationSettings().limit_ms == 24 * HOUR_MS
