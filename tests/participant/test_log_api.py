import base64
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from consent import (
    Identity,
    Log,
    PublicIdentity,
    TrustPolicy,
    sign_checkpoint,
    verify_checkpoint,
    verify_equivocation,
    verify_inclusion,
)
from consent.checkpoint import Checkpoint
from consent.log_api import MOST_ENTRIES
from consent.merkle import leaf_hash, tree_root
from consent.tiles import Tiles, new_tiles
from consent.witnessing import Submission, WitnessRefused, request_cosignature
from participant.node import Node
from participant.service import ServiceSettings, create_app
from tests.federation.synthetic import kinds

from .service_client import client_of, new_node
from .test_subject_api import problem


def policy_of(*logs: PublicIdentity) -> TrustPolicy:
    return TrustPolicy(logs=logs, witnesses={}, groups={}, quorum="none")


def note_at(node: Node, size: int) -> str:
    head = Checkpoint(node.name, size, node.log.root_at(size))
    return sign_checkpoint(head, node.identity)


def body(note: str, *, old: int = 0, proof: tuple[bytes, ...] = ()) -> bytes:
    return Submission(old_size=old, proof=proof, note=note).format().encode()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        yield (
            stack.enter_context(new_node("amber", tmp_path)),
            stack.enter_context(new_node("birch", tmp_path)),
        )


@pytest.fixture
def watched(nodes: tuple[Node, Node]) -> Iterator[tuple[httpx.Client, Node, Node]]:
    """Amber's witness, which watches the log of birch."""
    amber, birch = nodes
    for _ in range(6):
        birch.record("test.happened")
    with client_of(create_app(amber, ServiceSettings(peers=policy_of(birch.identity.public)))) as c:
        yield c, amber, birch


def test_published_entries_and_their_proofs_lead_to_the_checkpoint(
    nodes: tuple[Node, Node],
) -> None:
    node, _ = nodes
    client = client_of(create_app(node))
    node.register.withdraw("anna", at=node.clock())
    note = client.get("/log/checkpoint").text
    head = verify_checkpoint(note, policy_of(node.identity.public)).checkpoint
    leaves = client.get(f"/log/entries?start=0&end={head.tree_size}").content.splitlines()

    assert len(leaves) == head.tree_size
    for index, leaf in enumerate(leaves):
        first, number, *hashes = (
            client.get(f"/log/proof?index={index}").text.split("\n\n")[0].split("\n")
        )
        assert (first, number) == ("c2sp.org/tlog-proof@v1", f"index {index}")
        verify_inclusion(
            leaf_hash(leaf),
            index=index,
            tree_size=head.tree_size,
            proof=[base64.b64decode(each) for each in hashes],
            root=head.root_hash,
        )


def test_what_the_newest_checkpoint_does_not_cover_is_not_shown(nodes: tuple[Node, Node]) -> None:
    node, witness = nodes
    client = client_of(create_app(node))
    size = node.log.tree_size
    with client_of(
        create_app(witness, ServiceSettings(peers=policy_of(node.identity.public)))
    ) as peer:
        note = node.log.checkpoint()
        line = peer.post("/witness/add-checkpoint", content=body(note)).text
    policy = TrustPolicy(
        logs=(node.identity.public,),
        witnesses={"birch": witness.identity.public},
        groups={},
        quorum="birch",
    )
    node.log.accept_cosigned(note + line, policy)
    node.record("test.later")

    assert client.get("/log/checkpoint").text == note + line
    assert len(client.get("/log/entries?start=0&end=999").content.splitlines()) == size
    assert problem(client.get(f"/log/entries?start={size}&end=999")) == (404, "not-published")
    assert problem(client.get(f"/log/proof?index={size}")) == (404, "not-published")


def test_entries_come_in_bounded_parts(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    client = client_of(create_app(node))
    at = node.clock()
    node.log.append_many([{"type": "test.many", "v": 1, "at": at}] * (MOST_ENTRIES + 5))

    assert len(client.get("/log/entries?start=1&end=9999").content.splitlines()) == MOST_ENTRIES
    assert problem(client.get("/log/entries?start=5&end=5")) == (422, "invalid")
    assert problem(client.get("/log/entries?start=-1&end=5")) == (422, "invalid")
    assert problem(client.get("/log/proof?index=x")) == (422, "invalid")


def test_a_witness_cosigns_a_log_that_grows(
    watched: tuple[httpx.Client, Node, Node],
) -> None:
    client, amber, birch = watched
    policy = TrustPolicy(
        logs=(birch.identity.public,),
        witnesses={"amber": amber.identity.public},
        groups={},
        quorum="amber",
    )
    for old, new in [(0, 3), (3, 3), (3, 8)]:
        note = note_at(birch, new)
        proof = tuple(birch.log.consistency_proof(old, new)) if old else ()
        answer = client.post("/witness/add-checkpoint", content=body(note, old=old, proof=proof))

        assert answer.status_code == 200
        assert verify_checkpoint(note + answer.text, policy).cosigners == {
            "amber": amber.clock() // 1000 * 1000
        }


def test_a_witness_tells_the_size_it_knows(watched: tuple[httpx.Client, Node, Node]) -> None:
    client, _, birch = watched
    client.post("/witness/add-checkpoint", content=body(note_at(birch, 5)))

    for old in (0, 3, 6):
        answer = client.post("/witness/add-checkpoint", content=body(note_at(birch, 8), old=old))
        assert (answer.status_code, answer.text) == (409, "5\n")
        assert answer.headers["content-type"].startswith("text/x.tlog.size")


def test_a_witness_refuses_what_it_cannot_check(
    watched: tuple[httpx.Client, Node, Node],
) -> None:
    client, amber, birch = watched
    forged = sign_checkpoint(Checkpoint("birch", 3, bytes(32)), Identity.generate("birch"))
    cases = [
        (b"", 400, "malformed"),
        (b"old 0\n\nnonsense\n", 400, "malformed"),
        (b"old 00\n\n" + note_at(birch, 3).encode(), 400, "malformed"),
        (b"\xff", 400, "malformed"),
        (body(note_at(birch, 3), old=4), 400, "malformed"),
        (body(note_at(amber, 1)), 404, "unknown-log"),
        (body(forged), 403, "not-signed-by-log"),
        (body(note_at(birch, 3), proof=(bytes(32),)), 422, "proof-invalid"),
        (b"old 0\n" + b"x" * 20_000, 413, "body-too-large"),
    ]
    for content, status, slug in cases:
        answer = client.post("/witness/add-checkpoint", content=content)
        assert problem(answer) == (status, slug)
    client.post("/witness/add-checkpoint", content=body(note_at(birch, 3)))
    wrong = body(note_at(birch, 8), old=3, proof=(bytes(32),))
    assert problem(client.post("/witness/add-checkpoint", content=wrong)) == (422, "proof-invalid")


def test_a_node_without_a_policy_cosigns_nobody(nodes: tuple[Node, Node]) -> None:
    amber, birch = nodes
    client = client_of(create_app(amber))

    answer = client.post("/witness/add-checkpoint", content=body(note_at(birch, 1)))

    assert problem(answer) == (404, "unknown-log")


def test_two_heads_of_one_size_convict_their_log(
    watched: tuple[httpx.Client, Node, Node],
) -> None:
    client, amber, birch = watched
    client.post("/witness/add-checkpoint", content=body(note_at(birch, 4)))
    fork = sign_checkpoint(Checkpoint("birch", 4, b"f" * 32), birch.identity)
    size = amber.log.tree_size

    answer = client.post("/witness/add-checkpoint", content=body(fork, old=4))
    assert (answer.status_code, answer.text) == (409, "4\n")
    for note in (fork, note_at(birch, 4)):
        again = client.post("/witness/add-checkpoint", content=body(note, old=4))
        assert problem(again) == (403, "log-convicted")

    assert kinds(amber, after=size) == ["witness.conflict"]
    evidence = amber.log.entry(size).value
    verify_equivocation(str(evidence["known"]), str(evidence["shown"]), birch.identity.public)


@contextmanager
def listening(node: Node, peers: TrustPolicy) -> Iterator[str]:
    """A node behind a real server on loopback, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(node, ServiceSettings(peers=peers))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/witness"
        finally:
            server.should_exit = True
            thread.join()


def ask_for(node: Node, peer: Node, url: str, *, known_size: int = 0) -> str:
    return request_cosignature(
        url,
        node.log,
        log_key=node.identity.public,
        witness_key=peer.identity.public,
        at=node.clock(),
        known_size=known_size,
    )


def test_two_served_nodes_witness_each_other(nodes: tuple[Node, Node]) -> None:
    keys = policy_of(*(node.identity.public for node in nodes))
    with ExitStack() as stack:
        urls = [stack.enter_context(listening(node, keys)) for node in nodes]
        for _ in range(3):
            for node, peer, url in ((*nodes, urls[1]), (*nodes[::-1], urls[0])):
                policy = TrustPolicy(
                    logs=(node.identity.public,),
                    witnesses={"peer": peer.identity.public},
                    groups={},
                    quorum="peer",
                )
                note = ask_for(node, peer, url)
                verified = node.log.accept_cosigned(note, policy)

                assert verified.checkpoint.tree_size == node.log.tree_size
                assert httpx.get(url.replace("witness", "log/checkpoint")).status_code == 200
                node.record("test.happened")


def test_a_log_that_equivocates_gets_no_second_cosignature(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    amber, birch = nodes
    with (
        listening(birch, policy_of(amber.identity.public)) as url,
        Log.create(tmp_path / "fork", amber.identity) as fork,
    ):
        ask_for(amber, birch, url)
        size = amber.log.tree_size
        fork.append_many([{"type": "test.other", "v": 1, "at": amber.clock()}] * size)

        def ask_again() -> None:
            request_cosignature(
                url,
                fork,
                log_key=amber.identity.public,
                witness_key=birch.identity.public,
                at=amber.clock(),
            )

        for _ in range(2):
            with pytest.raises(WitnessRefused, match="the witness birch answered 403") as refusal:
                ask_again()
            assert refusal.value.status == 403
        assert kinds(birch)[-1] == "witness.conflict"


def test_a_log_that_was_put_back_is_told_so(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    amber, birch = nodes
    with (
        listening(birch, policy_of(amber.identity.public)) as url,
        Log.create(tmp_path / "older", amber.identity) as older,
    ):
        ask_for(amber, birch, url)
        older.append({"type": "test.other", "v": 1, "at": amber.clock()})
        with pytest.raises(WitnessRefused, match="has seen 2 entries, the log shows 1"):
            request_cosignature(
                url,
                older,
                log_key=amber.identity.public,
                witness_key=birch.identity.public,
                at=amber.clock(),
            )


def test_a_wrong_guess_of_the_size_costs_one_more_call(nodes: tuple[Node, Node]) -> None:
    amber, birch = nodes
    with listening(birch, policy_of(amber.identity.public)) as url:
        assert ask_for(amber, birch, url, known_size=1)
        with pytest.raises(WitnessRefused, match="is said to know 99 entries"):
            ask_for(amber, birch, url, known_size=99)


def test_an_answer_of_another_key_or_time_is_not_believed(nodes: tuple[Node, Node]) -> None:
    amber, birch = nodes
    with listening(birch, policy_of(amber.identity.public)) as url:
        with pytest.raises(WitnessRefused, match="sent no valid cosignature"):
            ask_for(amber, amber, url)
        amber.clock.now += 301_000  # type: ignore[attr-defined]
        with pytest.raises(WitnessRefused, match="five minutes off"):
            ask_for(amber, birch, url)
    with pytest.raises(WitnessRefused, match=r"could not be reached \(ConnectError\)"):
        ask_for(amber, birch, url)


@given(
    st.builds(
        Submission,
        old_size=st.integers(0, 2**63 - 1),
        proof=st.lists(st.binary(min_size=32, max_size=32), max_size=63).map(tuple),
        note=st.text(),
    )
)
def test_a_submission_reads_back_as_it_was_written(submission: Submission) -> None:
    assert Submission.parse(submission.format()) == submission


@given(st.text())
def test_a_text_that_is_no_submission_is_one_error(text: str) -> None:
    try:
        submission = Submission.parse(text)
    except ValueError:
        return

    assert submission.format() == text


def test_the_root_can_be_rebuilt_from_tiles_alone(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    client = client_of(create_app(node))
    event = {"type": "test.many", "v": 1, "at": node.clock()}
    node.log.append_many([event] * (2 * 256 + 37 - node.log.tree_size))
    note = client.get("/log/checkpoint").text
    head = verify_checkpoint(note, policy_of(node.identity.public)).checkpoint
    asked = []

    def fetch(path: str) -> bytes:
        asked.append(path)
        answer = client.get(f"/log/{path}")
        is_full = ".p/" not in path
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        assert ("immutable" in answer.headers["cache-control"]) == is_full
        assert (answer.headers["cache-control"] == "no-store") != is_full
        return answer.content

    tiles = Tiles(fetch, head.tree_size)
    assert tiles.root() == head.root_hash
    for level, index, _ in new_tiles(0, head.tree_size):
        tiles.tile(level, index)
    leaves = [leaf for index in range(3) for leaf in tiles.leaves(index)]
    assert tree_root([leaf_hash(leaf) for leaf in leaves]) == head.root_hash
    assert {"tile/0/001", "tile/0/002.p/37", "tile/1/000.p/2", "tile/entries/002.p/37"} <= set(
        asked
    )


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("0/000", "not-published"),
        ("0/000.p/200", "not-published"),
        ("entries/x001/234", "not-published"),
        ("0/0", "not-found"),
        ("0/000.p/0", "not-found"),
        ("0/000.p/256", "not-found"),
        ("9/000", "not-found"),
        ("0/x000/000", "not-found"),
        ("entries/../0", "not-found"),
        ("0/00a", "not-found"),
        ("entries", "not-found"),
    ],
)
def test_tiles_that_are_not_there_are_not_found(
    nodes: tuple[Node, Node], path: str, slug: str
) -> None:
    client = client_of(create_app(nodes[0]))

    assert problem(client.get(f"/log/tile/{path}")) == (404, slug)


def test_a_witness_shows_what_it_has_seen(watched: tuple[httpx.Client, Node, Node]) -> None:
    client, amber, birch = watched
    address = f"/witness/{hashlib.sha256(b'birch').hexdigest()}/checkpoint"
    assert problem(client.get(address)) == (404, "unknown-log")
    client.post("/witness/add-checkpoint", content=body(note_at(birch, 5)))

    note = client.get(address).text

    policy = TrustPolicy(
        logs=(birch.identity.public,),
        witnesses={"amber": amber.identity.public},
        groups={},
        quorum="amber",
    )
    assert verify_checkpoint(note, policy).checkpoint.tree_size == 5
    assert problem(client.get(f"/witness/{'0' * 64}/checkpoint")) == (404, "unknown-log")
