"""The commands for witnesses, as an operator types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consent import Checkpoint, Evidence, Identity, TrustPolicy, Witnessing, sign_checkpoint
from coordinator.host import Host
from participant.config import format_config
from participant.node import Node
from tests.federation.synthetic import Clock, config_of
from tillpact.cli import app

RUN = CliRunner()
KEY = Identity.generate("amber")


def note(size: int, fill: bytes) -> str:
    return sign_checkpoint(Checkpoint("amber", size, fill * 32), KEY)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "trust.policy"
    trust = TrustPolicy(logs=(KEY.public,), witnesses={}, groups={}, quorum="none")
    path.write_text(trust.format())
    return path


def judge(tmp_path: Path, policy: Path, data: bytes, *options: str) -> tuple[int, str]:
    (tmp_path / "evidence.json").write_bytes(data)
    command = ["audit", "equivocation", str(tmp_path / "evidence.json"), "--policy", str(policy)]
    done = RUN.invoke(app, [*command, *options])
    return done.exit_code, done.output


def test_two_heads_of_one_size_convict(tmp_path: Path, policy: Path) -> None:
    data = Evidence(log=KEY.public, known=note(4, b"a"), shown=note(4, b"b")).format()

    code, said = judge(tmp_path, policy, data)
    assert code == 0
    assert "Convicted: the log of amber. The log signed two different root hashes" in said
    code, said = judge(tmp_path, policy, data, "--json")
    assert (code, json.loads(said)["data"]["convicts"]) == (0, True)


def test_anything_less_convicts_nobody(tmp_path: Path, policy: Path) -> None:
    smaller = Evidence(log=KEY.public, known=note(4, b"a"), shown=note(3, b"b")).format()
    assert judge(tmp_path, policy, smaller)[0] == 1
    assert judge(tmp_path, policy, b"{}")[0] == 1
    other = Identity.generate("amber")
    heads = [sign_checkpoint(Checkpoint("amber", 4, fill * 32), other) for fill in (b"a", b"b")]
    forged = Evidence(log=other.public, known=heads[0], shown=heads[1]).format()
    code, said = judge(tmp_path, policy, forged)
    assert code == 1
    assert "the evidence is against another key than the policy's for this log" in said
    done = RUN.invoke(app, ["audit", "equivocation", "/nowhere", "--policy", str(policy)])
    assert done.exit_code == 2
    assert "the evidence /nowhere cannot be read; nothing was verified" in done.output


def test_a_pass_without_a_quorum_is_a_no(tmp_path: Path) -> None:
    path = tmp_path / "trust.policy"
    config = config_of("amber", tmp_path, witnessing=Witnessing(policy=path))
    with Node.create(config, clock=Clock()) as node:
        own, other = node.identity.public, Identity.generate("birch").public
    (tmp_path / "amber.toml").write_text(format_config(config))
    command = ["audit", "witness", str(tmp_path / "amber.toml")]

    for quorum, code in (("amber", 0), ("birch", 1)):
        path.write_text(
            TrustPolicy(
                logs=(own,),
                witnesses={"amber": own, "birch": other},
                groups={},
                quorum=quorum,
                urls={"birch": "http://127.0.0.1:9/witness"},
            ).format()
        )
        done = RUN.invoke(app, command)
        assert done.exit_code == code, done.output
        assert "NOT       birch: the witness birch could not be reached" in done.output
        assert json.loads(RUN.invoke(app, [*command, "--json"]).stdout)["data"]["met"] == (not code)
    path.unlink()
    assert RUN.invoke(app, command).exit_code == 2


def test_a_coordinators_head_is_shown_too_and_nobody_is_released_in_vain(tmp_path: Path) -> None:
    with Host.create(tmp_path / "coordinator", name="coordinator") as host:
        trust = TrustPolicy(logs=(host.identity.public,), witnesses={}, groups={}, quorum="none")
    (tmp_path / "coordinator" / "trust.policy").write_text(trust.format())

    assert RUN.invoke(app, ["audit", "witness", str(tmp_path / "coordinator")]).exit_code == 0
    command = ["coordinator", "release", str(tmp_path / "coordinator"), "dune", "--reason", "x"]
    done = RUN.invoke(app, command)
    assert done.exit_code == 1
    assert "the log 'dune' is not convicted; nothing was changed" in done.output
