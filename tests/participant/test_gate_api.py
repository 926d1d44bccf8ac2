from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from httpx import Response

from consent import Purpose
from participant.decisions import KEPT_EVERY_MS, WINDOW_MS, GateDesk
from participant.gate_api import ARROW
from participant.handle import issue_handle
from participant.node import Node
from tests.federation.synthetic import Clock, agree, events, kinds

from .service_client import new_node
from .staff_client import Staff
from .test_subject_api import problem

pytestmark = pytest.mark.usefixtures("both_stores")

ANNA, BEN = "canary-anna", "canary-ben"
SCORE = {"kind": "score", "run": "spring"}


@pytest.fixture
def staff(tmp_path: Path) -> Iterator[Staff]:
    clock = Clock()
    with new_node("amber", tmp_path, clock=clock) as node:
        agree(node, [ANNA, BEN])
        node.register.withdraw(BEN, None, at=clock())
        yield Staff.of(node, clock)


def decide(staff: Staff, subject: str, purpose: str = "recommendation") -> dict[str, object]:
    body = {"subject": subject, "purpose": purpose}
    return dict(staff.scorer.post("/v1/decisions", body).json())


def batch(
    staff: Staff, table: pa.Table | bytes, purpose: str = "recommendation", kind: str = ARROW
) -> Response:
    content = table
    if isinstance(table, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue().to_pybytes()
    headers = {**staff.scorer.headers, "Content-Type": kind}
    path = f"/v1/decisions:batch?purpose={purpose}"
    return staff.client.post(path, headers=headers, content=content)  # type: ignore[arg-type]


def test_one_question_gets_a_yes_or_a_no_and_no_finer_reason(staff: Staff) -> None:
    handle = {"handle": issue_handle(staff.node, ANNA), "purpose": "recommendation"}

    assert decide(staff, ANNA) == {"permitted": True, "reason": "permitted"}
    assert decide(staff, BEN) == {"permitted": False, "reason": "no_consent"}
    assert decide(staff, "nobody") == {"permitted": False, "reason": "no_consent"}
    assert decide(staff, ANNA, "cross_border") == {"permitted": False, "reason": "not_assessed"}
    assert staff.scorer.post("/v1/decisions", handle).json()["permitted"]
    wrong = {**handle, "handle": "x"}
    assert not staff.scorer.post("/v1/decisions", wrong).json()["permitted"]


def test_a_withdrawal_is_a_no_at_once(staff: Staff) -> None:
    assert decide(staff, ANNA)["permitted"]
    staff.node.register.withdraw(ANNA, None, at=staff.clock())
    staff.clock.now += 250

    assert not decide(staff, ANNA)["permitted"]


def test_questions_of_an_hour_are_two_entries_and_name_nobody(staff: Staff) -> None:
    staff.clock.now += WINDOW_MS - staff.clock.now % WINDOW_MS
    size = staff.node.log.tree_size
    for _ in range(20):
        decide(staff, ANNA)
        decide(staff, BEN)
    first = kinds(staff.node, after=size)
    staff.clock.now += WINDOW_MS
    decide(staff, ANNA)
    told = events(staff.node, after=size)

    assert first == ["access.allowed", "decisions.opened"]
    assert [event["type"] for event in told][2:] == [
        "access.allowed",
        "decisions.closed",
        "decisions.opened",
    ]
    closed = told[3]
    assert (closed["permitted"], closed["refused"]) == ("<64", "<64")
    assert closed["decisions"] == told[1]["decisions"]
    leaves = b"".join(entry.leaf for entry in staff.node.log.entries())
    for secret in (ANNA, BEN, staff.node.register.subject_ref(ANNA)):
        assert secret.encode() not in leaves


def test_a_window_that_a_crash_left_open_is_closed_at_the_next_start(staff: Staff) -> None:
    decide(staff, ANNA)
    staff.clock.now += KEPT_EVERY_MS
    decide(staff, ANNA)
    node = staff.node
    node.close()
    with Node.open(node.config, clock=staff.clock) as again:
        GateDesk(again)
        (closed,) = [event for event in events(again) if event["type"] == "decisions.closed"]
        with again.log.reading() as connection:
            row = connection.execute("SELECT permitted, closed FROM decision_window").fetchone()
        GateDesk(again).close()
        assert kinds(again).count("decisions.closed") == 1
    assert tuple(row) == (2, 1)
    assert len(str(closed["mask_root"])) == 64


def test_a_desk_that_stops_closes_its_windows(staff: Staff) -> None:
    desk = GateDesk(staff.node)
    session = staff.node.accounts.sign_in(staff.scorer.made.token, at=staff.clock())
    desk.decide(session, Purpose.RECOMMENDATION, subject=ANNA)
    desk.close()

    assert kinds(staff.node)[-1] == "decisions.closed"


def test_when_the_log_cannot_be_used_the_answer_is_a_no(staff: Staff) -> None:
    assert decide(staff, ANNA)["permitted"]
    staff.node.log.close()

    assert decide(staff, ANNA) == {"permitted": False, "reason": "undecided"}


@pytest.mark.parametrize("role", ["officer", "operator", "author"])
def test_no_person_asks_the_gate(staff: Staff, role: str) -> None:
    member = getattr(staff, role)
    body = {"subject": ANNA, "purpose": "recommendation"}
    asked = {"purpose": "recommendation", "use": SCORE, "subjects": [ANNA]}

    assert problem(member.post("/v1/decisions", body)) == (403, "not-permitted")
    assert problem(member.post("/v1/permits", asked)) == (403, "not-permitted")
    assert problem(staff.client.post("/v1/decisions", json=body)) == (401, "not-signed-in")


def test_a_service_asks_for_its_own_kind_of_use_only(staff: Staff) -> None:
    asked = {"purpose": "recommendation", "use": {"kind": "train"}, "subjects": [ANNA]}

    assert problem(staff.scorer.post("/v1/permits", asked)) == (403, "not-permitted")


def test_a_permit_hands_out_a_mask_in_order_and_is_closed_once(staff: Staff) -> None:
    asked = {"purpose": "recommendation", "use": SCORE, "subjects": [BEN, ANNA, "nobody"]}
    made = staff.scorer.post("/v1/permits", asked, key="permit-1").json()
    again = staff.scorer.post("/v1/permits", asked, key="permit-1").json()
    path = f"/v1/permits/{made['permit']}/close"
    foreign = staff.officer.post(path)
    closed = staff.scorer.post(path)
    twice = staff.scorer.post(path)

    assert made == again
    assert made["mask"] == [False, True, False]
    assert set(made) == {"permit", "log_index", "state_seq", "valid_until", "mask"}
    assert staff.node.log.entry(made["log_index"]).value["type"] == "permit.issued"
    assert closed.status_code == 200
    assert problem(twice) == problem(foreign) == (404, "unknown-permit")
    assert kinds(staff.node).count("permit.issued") == kinds(staff.node).count("permit.closed") == 1


def test_a_permit_for_nobody_or_without_an_assessment_is_refused(staff: Staff) -> None:
    asked = {"purpose": "recommendation", "use": SCORE, "subjects": [BEN]}
    nobody = staff.scorer.post("/v1/permits", asked)
    unassessed = staff.scorer.post("/v1/permits", {**asked, "purpose": "cross_border"})

    assert problem(nobody) == (403, "not-opened")
    assert problem(unassessed) == (403, "not-assessed")
    assert kinds(staff.node).count("permit.denied") == 2


def test_a_batch_is_answered_in_order_under_one_permit(staff: Staff) -> None:
    answer = batch(staff, pa.table({"subject": [BEN, ANNA, "nobody", ANNA]}))
    with pa.ipc.open_stream(answer.content) as reader:
        column = reader.read_all().column("permitted").to_pylist()

    assert column == [False, True, False, True]
    (issued,) = [event for event in events(staff.node) if event["type"] == "permit.issued"]
    assert answer.headers["tillpact-permit"] == issued["permit"]
    assert answer.headers["content-type"] == ARROW


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"not arrow",
        pa.table({"other": ["a"]}),
        pa.table({"subject": [1]}),
        pa.table({"subject": ["a"], "more": ["b"]}),
        pa.table({"subject": pa.array([], pa.string())}),
        pa.table({"subject": ["a", None]}),
        pa.table({"subject": ["a", ""]}),
    ],
    ids=["nothing", "text", "name", "numbers", "two columns", "no rows", "null", "empty"],
)
def test_a_batch_that_is_not_one_column_of_people_is_refused(
    staff: Staff, table: pa.Table | bytes
) -> None:
    status, slug = problem(batch(staff, table))

    assert (status, slug) in {(415, "not-arrow"), (422, "invalid")}
    assert "permit.issued" not in kinds(staff.node)


def test_a_batch_keeps_its_limits(staff: Staff) -> None:
    assert problem(batch(staff, b"{}", kind="application/json")) == (415, "not-arrow")
    assert problem(batch(staff, bytes((1 << 25) + 1))) == (413, "body-too-large")
    many = {"purpose": "recommendation", "use": SCORE, "subjects": [f"x{i}" for i in range(9000)]}
    # More than other addresses read, and fewer than a permit may be about.
    assert problem(staff.scorer.post("/v1/permits", many)) == (403, "not-opened")
