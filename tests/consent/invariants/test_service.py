"""I6, I10, I13 and I19 where people and the coordinator meet a node: over HTTP and in its files."""

import base64
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from consent import (
    Profile,
    Purpose,
    Refused,
    TrustPolicy,
    build_evidence,
    is_separate,
    verify_published,
)
from participant.handle import issue_handle, revoke_handles
from participant.node import Node
from tests.federation.synthetic import Federation, agree
from tests.participant.service_client import NOTICE_FIELDS, Person, new_node, person

from .worlds import SOME, USE, new_folder

CANARY = "kanarie-7f3a"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with new_folder() as folder, new_node("amber", folder) as made:
        yield made


def somebody(node: Node) -> Person:
    """Return a person whom the node has never seen."""
    return person(node, f"somebody {uuid.uuid4()}")


@SOME
@given(purposes=st.frozensets(st.sampled_from(Purpose), min_size=1))
def test_i06_over_http_taking_back_needs_no_more_calls_than_giving(
    node: Node, purposes: frozenset[Purpose]
) -> None:
    """I6: one call takes back what one call gave, one purpose or everything."""
    # Nobody is declared here, so what needs a named recipient or a reason is not asked for.
    purposes = frozenset(p for p in purposes if node.declared.names_all(p))
    assume(purposes)
    anna = somebody(node)
    alone = [p for p in purposes if is_separate(p, profile=Profile.EU_GDPR)]
    bundled = [p for p in purposes if p not in alone]
    calls = [anna.give(p, separate=True) for p in alone] + [anna.give(*bundled)] * bool(bundled)
    assert [call.status_code for call in calls] == [200] * len(calls)
    given_alone = anna.state()
    one = anna.post(f"/v1/consents/{min(purposes)}/withdraw")
    every = anna.post("/v1/withdrawals", {"purposes": sorted(purposes)})

    assert one.status_code == every.status_code == 200
    assert all(given_alone[p]["status"] == "given" for p in purposes)
    assert {each["status"] for p, each in anna.state().items() if p in purposes} == {"withdrawn"}


bodies = st.sampled_from(
    [
        ("/v1/consents", ("contact",)),
        ("/v1/consents", ("recommendation", "contact")),
        ("/v1/withdraw-all", ()),
        ("/v1/consents/contact/withdraw", ()),
    ]
)


@SOME
@given(
    requests=st.lists(st.tuples(st.sampled_from(["key-0001", "key-0002"]), bodies), max_size=8),
    restart_at=st.integers(0, 8),
)
def test_i10_one_key_is_one_act_and_one_entry(
    node: Node, requests: list[tuple[str, tuple[str, tuple[str, ...]]]], restart_at: int
) -> None:
    """I10: the same Idempotency-Key is the same entry once, also for a service begun anew."""
    name = f"somebody {uuid.uuid4()}"
    anna = person(node, name)
    first: dict[str, tuple[object, int]] = {}
    for number, (key, body) in enumerate(requests):
        if number == restart_at:
            anna = person(node, name)
        path, names = body
        size = node.log.tree_size
        answer = anna.give(*names, key=key) if names else anna.post(path, key=key)
        grown = node.log.tree_size - size
        if key not in first:
            assert (answer.status_code, grown) == (200, 1)
            first[key] = (body, answer.json()["log_index"])
        elif first[key][0] == body:
            assert (answer.status_code, grown) == (200, 0)
            assert answer.json()["log_index"] == first[key][1]
        else:
            assert (answer.status_code, grown) == (409, 0)


@settings(SOME, max_examples=10)
@given(purposes=st.frozensets(st.sampled_from(list(Purpose)[:6]), min_size=1))
def test_i13_new_handles_change_no_decision_and_no_leaf(
    node: Node, purposes: frozenset[Purpose]
) -> None:
    """I13: handles are made anew; who may be used, and every leaf, stay as they were."""
    name = f"somebody {uuid.uuid4()}"
    anna = person(node, name)
    anna.give(*purposes)
    before, leaves = anna.state(), [entry.leaf for entry in node.log.entries()]
    revoke_handles(node, name)
    size = len(leaves)

    assert anna.get("/v1/me/state").status_code == 401
    assert Person(anna.client, issue_handle(node, name)).state() == before
    assert [entry.leaf for entry in node.log.entries(0, size)] == leaves


# --- I19 --------------------------------------------------------------------------------------


def spellings(canary: str) -> set[bytes]:
    """Return every plain way in which the name could stand somewhere."""
    raw = canary.encode()
    found = {raw, canary.encode("utf-16-le"), canary.encode("utf-16-be"), raw.hex().encode()}
    found |= {canary.upper().encode(), raw[::-1], quote(canary, safe="").encode()}
    found.add(canary.encode("unicode_escape"))
    for shift in range(3):
        # Without the letters that also hold bits of what stands before and after.
        encoded = base64.b64encode(bytes(shift) + raw)[-(-shift * 4 // 3) or 0 :].rstrip(b"=")
        found.add(encoded[1 if shift else 0 : -1])
    return {spelling for spelling in found if len(spelling) >= 6}


def verify_unnamed(data: bytes, canary: str, *, where: str) -> None:
    for spelling in spellings(canary):
        assert spelling not in data, f"{where} names a person"


def files_of(folder: Path) -> dict[str, bytes]:
    """Read every file but the retailer's own tables."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in {".csv", ".key"}
    }


def live(node: Node, canary: str) -> list[bytes]:
    """Let a person do all there is to do, rightly and wrongly, and return what was answered."""
    anna = person(node, canary)
    answers = [
        anna.give("contact", "recommendation", refused=["churn_scoring"]),
        anna.give("contact", channel=f"{canary}!"),
        anna.give(canary),
        anna.give("contact", notice={**NOTICE_FIELDS, "id": canary}),
        anna.give("contact", **{canary: 1}),
        anna.get(f"/v1/notices/{quote(canary)}"),
        anna.get(f"/{quote(canary)}"),
        anna.get(f"/v1/me/history?start={quote(canary)}"),
        anna.post(f"/v1/consents/{quote(canary)}/withdraw"),
        anna.post("/v1/objections", {"set": True, "purposes": ["contact"]}),
        anna.post("/v1/restrictions", {"set": canary}),
        anna.post("/v1/withdraw-all"),
        anna.get("/v1/me/state"),
        anna.get("/v1/me/history"),
        Person(anna.client, quote(canary)).get("/v1/me/state"),
    ]
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422}
    said = [answer.content + str(answer.headers).encode() for answer in answers]
    at = node.clock()
    for ask in (
        lambda: node.gate.open(Purpose.CONTACT, [canary], use=USE, at=at),
        lambda: node.gate.open(Purpose.CONTACT, [canary, 7], use=USE, at=at),  # type: ignore[list-item]
        lambda: node.gate.open(canary, [canary], use=USE, at=at),  # type: ignore[arg-type]
    ):
        with pytest.raises(Refused) as refused:
            ask()
        said.append(str(refused.value).encode())
    with pytest.raises(ValueError, match="one person already") as same:
        node.register.merge(canary, canary, at=at)
    said.append(str(same.value).encode())
    node.register.merge(canary, f"{canary}-2", at=at)
    node.register.record_guardian(canary, reference="file 7", at=at)
    return said


# An example is a whole node: one that fails is not made smaller for minutes.
@settings(SOME, max_examples=6, phases=[Phase.generate])
@given(
    canary=st.text(
        st.characters(codec="utf-8", categories=["L", "N"]), min_size=6, max_size=12
    ).map(lambda name: f"{name} kanarie")
)
def test_i19_no_name_is_in_any_file_answer_or_message(
    caplog: pytest.LogCaptureFixture, canary: str
) -> None:
    """I19: no raw identifier in leaves, files, answers, errors, logging or what is handed out."""
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with new_folder() as folder:
        with new_node("amber", folder) as node:
            for answer in live(node, canary):
                verify_unnamed(answer, canary, where="an answer")
            audit = node.publish()
            anybody = TrustPolicy.parse(f"log {node.identity.public.format()}\nquorum none\n")
            at = node.clock()
            pack = build_evidence(audit, anybody, since=at - 10**6, until=at + 10**6)
            node.register.erase(f"{canary}-2", at=at)
            leaves = b"\n".join(entry.leaf for entry in node.log.entries())
            open_node = files_of(folder)
        closed = files_of(folder)

    verify_unnamed(leaves, canary, where="a leaf")
    verify_unnamed(pack, canary, where="the evidence pack")
    # What the person's own client writes about its requests is not the node's.
    records = [record for record in caplog.records if not record.name.startswith("httpx")]
    said = "\n".join(record.getMessage() + str(record.exc_info) for record in records)
    verify_unnamed(said.encode(), canary, where="a message to operators")
    assert {"nodes/amber/log/log.sqlite", "nodes/amber/audit/entries.jsonl"} <= closed.keys()
    for name, content in (open_node | closed).items():
        verify_unnamed(content, canary, where=name)


def test_i19_no_name_leaves_with_a_trained_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I19: after a whole run no file of any node or of the coordinator names a customer."""
    caplog.set_level(logging.DEBUG)
    federation = Federation.create(tmp_path, names=("amber", "birch", "cedar"), customers=15)
    try:
        for name in list(federation.nodes):
            table = tmp_path / f"{name}.csv"
            lines = pd.read_csv(table)
            lines.assign(who=f"{CANARY}-" + lines["who"]).to_csv(table, index=False)
            node = federation.reopen(name)
            agree(node, node.table.subjects)
        assert all(s.startswith(CANARY) for s in federation.nodes["amber"].table.subjects)
        federation.train(federation.plan())
        for node in federation.nodes.values():
            verify_published(node.publish(), federation.policy)
    finally:
        federation.close()
    found = files_of(tmp_path)

    verify_unnamed(caplog.text.encode(), CANARY, where="a message")
    assert any(name.endswith(".npz") for name in found)
    for name, content in found.items():
        verify_unnamed(content, CANARY, where=name)


def test_i19_the_search_would_find_a_name_in_each_spelling() -> None:
    """I19: what looks for canaries is not blind."""
    for hidden in (
        CANARY.encode(),
        CANARY.encode("utf-16-le"),
        base64.b64encode(b"x" + CANARY.encode() + b"yz"),
        base64.b64encode(b"xx" + CANARY.encode()),
        base64.b64encode(CANARY.encode() + b"more"),
        CANARY.encode().hex().encode(),
    ):
        with pytest.raises(AssertionError, match="names a person"):
            verify_unnamed(b"before " + hidden + b" after", CANARY, where="it")
