"""Nodes and a coordinator behind real servers on loopback, which witness each other."""

import dataclasses
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from consent import LogError, TrustPolicy, Witnessing, verify_checkpoint
from consent.cosigning import Cosigner, keeping_cosigned
from coordinator import service as coordinator_service
from coordinator.host import Host
from participant.cosigning import cosigner_of
from participant.node import Node, NodeError
from participant.service import create_app
from privacy import Roster
from tests.federation.synthetic import Clock, config_of, kinds

NAMES = ("amber", "birch", "cedar", "dune")


@contextmanager
def listening(app: FastAPI, port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Peers:
    """Four nodes and a coordinator with one policy; each can be up or down."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.policy_path = folder / "trust.policy"
        self.host = Host.create(folder / "coordinator", name="coordinator", clock=self.clock)
        self.ports = {name: free_port() for name in (*NAMES, "coordinator")}
        settings = Witnessing(policy=self.policy_path)
        self.nodes = {
            name: Node.create(config_of(name, folder, witnessing=settings), clock=self.clock)
            for name in NAMES
        }
        urls = {name: f"http://127.0.0.1:{port}/witness" for name, port in self.ports.items()}
        roster = Roster(node.card for node in self.nodes.values())
        self.policy = self.host.enrol(roster, urls=urls)
        self.policy_path.write_text(self.policy.format())
        self._up: dict[str, ExitStack] = {}

    def start(self, *names: str) -> None:  # noqa: D102 - see the class
        for name in names:
            is_host = name == "coordinator"
            app = (
                coordinator_service.create_app(self.host)
                if is_host
                else create_app(self.nodes[name])
            )
            self._up[name] = ExitStack()
            self._up[name].enter_context(listening(app, self.ports[name]))

    def stop(self, *names: str) -> None:  # noqa: D102 - see the class
        for name in names:
            self._up.pop(name).close()

    def cosigner(self, name: str) -> Cosigner:  # noqa: D102 - see the class
        return cosigner_of(self.nodes[name])

    def restore(self, name: str, backup: Path) -> Node:
        """Close a node, put its folder back from a copy, and open it again."""
        config = self.nodes[name].config
        self.nodes[name].close()
        shutil.rmtree(config.folder)
        shutil.copytree(backup, config.folder)
        self.nodes[name] = Node.open(config, clock=self.clock)
        return self.nodes[name]

    def close(self) -> None:  # noqa: D102 - see the class
        self.stop(*list(self._up))
        for node in self.nodes.values():
            node.close()
        self.host.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    made = Peers(tmp_path)
    made.start("coordinator", "birch", "cedar", "dune")
    yield made
    made.close()


def test_a_quorum_is_reached_and_kept_in_the_log(peers: Peers) -> None:
    done = peers.cosigner("amber").ask()

    assert done.is_met
    assert set(done.cosigners) == {"coordinator", *NAMES}
    note = peers.nodes["amber"].log.newest_note()
    verified = verify_checkpoint(note, peers.policy)
    assert verified.checkpoint.tree_size == done.tree_size


def test_one_peer_down_delays_nobody_and_two_are_too_many(peers: Peers) -> None:
    cosigner = peers.cosigner("amber")
    peers.stop("dune")
    done = cosigner.ask()

    assert done.is_met
    assert done.refused == {"dune": "the witness dune could not be reached (ConnectError)"}

    peers.stop("cedar")
    peers.nodes["amber"].record("test.happened")
    lost = cosigner.ask()

    assert not lost.is_met
    assert set(lost.cosigners) == {"coordinator", "amber", "birch"}
    # What two of them said is kept, and the third completes it.
    peers.start("cedar")
    assert cosigner.ask().is_met


def test_the_coordinators_log_is_cosigned_too(peers: Peers) -> None:
    peers.start("amber")
    done = coordinator_service.cosigner_of(peers.host).ask()

    assert done.is_met
    assert verify_checkpoint(peers.host.log.newest_note(), peers.policy).cosigners


def test_only_changes_are_logged_and_the_same_again_once_an_hour(peers: Peers) -> None:
    amber, cosigner = peers.nodes["amber"], peers.cosigner("amber")
    published: list[str] = []

    def step(seconds: int) -> None:
        peers.clock.now += seconds * 1000
        cosigner.step(lambda: published.append(amber.log.newest_note()))

    for _ in range(4):
        step(60)
    assert kinds(amber)[1:] == ["witness.cosigned"]
    assert len(published) == len(set(published))
    peers.stop("cedar", "dune")
    amber.record("test.happened")
    for _ in range(6):
        step(60)
    assert kinds(amber)[2:] == ["test.happened", "witness.stale"]
    step(3600)
    assert kinds(amber)[4:] == ["witness.stale"]
    peers.start("cedar", "dune")
    step(60)
    assert kinds(amber)[5:] == ["witness.cosigned"]


def test_a_head_that_stands_still_is_cosigned_again_at_half_its_age(peers: Peers) -> None:
    cosigner, times = peers.cosigner("amber"), []
    for _ in range(9):
        cosigner.step(lambda: None)
        note = peers.nodes["amber"].log.newest_note()
        times.append(verify_checkpoint(note, peers.policy).cosigners["birch"])
        peers.clock.now += 61_000

    # The event of the first quorum moves the head once; then it is fresh for five minutes.
    assert len(set(times)) == 3


def test_cosigning_goes_on_after_a_restart_of_a_peer(peers: Peers) -> None:
    cosigner = peers.cosigner("amber")
    assert cosigner.ask().is_met
    peers.stop("birch")
    config = peers.nodes["birch"].config
    peers.nodes["birch"].close()
    peers.nodes["birch"] = Node.open(config, clock=peers.clock)
    peers.nodes["amber"].record("test.happened")
    peers.start("birch")

    assert "birch" in cosigner.ask().cosigners


def test_an_old_copy_of_a_node_signs_nothing_more(peers: Peers, tmp_path: Path) -> None:
    amber = peers.nodes["amber"]
    amber.close()
    shutil.copytree(amber.config.folder, tmp_path / "backup")
    peers.nodes["amber"] = amber = Node.open(amber.config, clock=peers.clock)
    amber.record("test.happened")
    peers.cosigner("amber").ask()

    restored = peers.restore("amber", tmp_path / "backup")

    for _ in range(2):
        with pytest.raises(LogError, match="another witness has seen: it was put back"):
            peers.cosigner("amber").ask()
    for _ in range(4):  # Growing past what was seen does not make it the same log.
        restored.record("test.other")
    with pytest.raises(LogError, match="it was put back"):
        peers.cosigner("amber").ask()


def test_a_witness_that_only_claims_to_have_seen_more_stops_nobody(peers: Peers) -> None:
    """Its 409 is not signed by this node's key, so it proves nothing."""
    amber, birch = peers.nodes["amber"], peers.nodes["birch"]
    birch.tower.size_of = lambda origin: 99  # type: ignore[method-assign, misc]
    birch.tower._witness.size_of = lambda origin: 99  # type: ignore[method-assign]

    done = peers.cosigner("amber").ask()

    assert done.is_met
    assert "has seen 99 entries, the log shows" in done.refused["birch"]
    amber.tower.verify_not_put_back()


def test_a_witness_whose_clock_is_off_does_not_count(peers: Peers) -> None:
    birch = peers.nodes["birch"]
    birch.tower._clock = lambda: peers.clock.now + 301_000

    done = peers.cosigner("amber").ask()

    assert "cosigned with a time five minutes off or more" in done.refused["birch"]
    assert "birch" not in done.cosigners


def test_the_thread_keeps_a_served_log_cosigned(peers: Peers) -> None:
    amber, done = peers.nodes["amber"], threading.Event()
    with keeping_cosigned(peers.cosigner("amber"), publish=done.set, every_s=0.05):
        assert done.wait(20)

    assert verify_checkpoint(amber.log.newest_note(), peers.policy)


def test_a_policy_of_other_logs_is_refused(peers: Peers) -> None:
    other = TrustPolicy(
        logs=(dataclasses.replace(peers.nodes["birch"].identity.public, name="amber"),),
        witnesses={},
        groups={},
        quorum="none",
    )
    peers.policy_path.write_text(other.format())
    with pytest.raises(Exception, match="knows the log 'amber' by another key"):
        peers.cosigner("amber")
    peers.policy_path.unlink()
    with pytest.raises(Exception, match=r"trust.policy cannot be read; nobody was asked"):
        peers.cosigner("amber")


def test_without_policy_and_members_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with (
        Node.create(config_of("zoe", tmp_path), clock=Clock()) as node,
        pytest.raises(NodeError, match="zoe has pinned no coordinator yet"),
    ):
        cosigner_of(node)
