"""Receipts, requests about rights, and handles, as a person and as staff meet them."""

import dataclasses
import json
import runpy
import stat
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from httpx import Response

from consent import (
    AccessDenied,
    AccessGrant,
    AccessRequest,
    Action,
    AgeBand,
    Controller,
    Profile,
    Purpose,
    PurposeDeclaration,
    ReceiptStatus,
    Role,
    SealError,
    Words,
    parse_27560,
    verify_receipt,
)
from consent.cedar import CedarEngine
from consent.policy import SHIPPED
from consent.problems import MEDIA_TYPE
from participant.handle import (
    Handles,
    issue_handle,
    make_issuer_token,
    read_issuer_token,
    revoke_handles,
)
from participant.node import Node, NodeError
from participant.receipts import Receipts, UnknownRecord
from participant.rights import MOST_OPEN, RequestKind, Rights, RightsError
from participant.service import create_app
from tests.federation.synthetic import DAY_MS, Clock, config_of, govern

from .service_client import NOTICE, Person, client_of, new_node, person
from .test_subject_api import problem

pytestmark = pytest.mark.usefixtures("both_stores")

CONTROLLER = runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py"))[
    "CONTROLLER"
]
SCREEN = {"version": "8.4.1", "sha256": "5c" * 32}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    config = config_of("amber", tmp_path, controller=CONTROLLER)
    with Node.create(config, clock=Clock()) as made:
        made.register.publish_notice(NOTICE, oldest_accepted=2, at=made.clock())
        yield made


@pytest.fixture
def anna(node: Node) -> Person:
    return person(node, "anna")


@pytest.fixture
def rights(node: Node) -> Rights:
    return Rights(node, Handles.of(node))


def grant(node: Node, action: Action, about: str) -> AccessGrant:
    request = AccessRequest(
        actor="op-1", role=Role.OPERATOR, action=action, about=about, mfa_age_s=0
    )
    return node.access.authorize(request, at=node.clock())


def receipt_of(who: Person, record: str) -> str:
    response = who.get(f"/v1/me/receipts/{record}")
    assert response.status_code == 200, response.text
    return response.text


def test_a_receipt_is_final_once_a_checkpoint_covers_the_act(node: Node, anna: Person) -> None:
    record = anna.give("contact", refused=["recommendation"]).json()["record"]
    (listed,) = anna.get("/v1/me/receipts").json()["receipts"]
    text = receipt_of(anna, record)
    receipt = verify_receipt(text, node.identity.public)

    assert (listed["record"], listed["status"]) == (record, "final")
    assert receipt.status is ReceiptStatus.FINAL
    assert [line.purpose for line in receipt.given] == [Purpose.CONTACT]
    assert receipt.controller == CONTROLLER.about({Purpose.CONTACT})
    assert text == receipt_of(anna, record)


def test_a_receipt_is_pending_as_long_as_the_newest_note_is_older(node: Node, anna: Person) -> None:
    note = node.log.checkpoint()
    with node.log.transaction() as transaction:
        transaction.connection.execute(
            "INSERT INTO cosigned VALUES (?, ?)", (node.log.tree_size, note)
        )
    record = anna.give("contact").json()["record"]
    receipt = verify_receipt(receipt_of(anna, record), node.identity.public)

    assert receipt.status is ReceiptStatus.PENDING
    assert anna.get("/v1/me/receipts").json()["receipts"][0]["status"] == "pending"


def test_the_key_on_a_receipt_takes_back_and_never_gives(node: Node, anna: Person) -> None:
    record = anna.give("contact", "recommendation").json()["record"]
    key = verify_receipt(receipt_of(anna, record), node.identity.public).subject_key
    node.clock.now += 400 * DAY_MS  # type: ignore[attr-defined]
    holder = Person(anna.client, key, keys=iter(range(500, 600)))

    assert anna.get("/v1/me/state").status_code == 401
    assert holder.post("/v1/consents/contact/withdraw").status_code == 200
    assert holder.post("/v1/objections", {"set": True}).status_code == 200
    assert problem(holder.post("/v1/objections", {"set": False})) == (403, "not-permitted")
    assert problem(holder.give("contact")) == (403, "not-permitted")
    assert problem(holder.get("/v1/me/export")) == (403, "not-permitted")
    assert problem(holder.post("/v1/me/requests", {"right": "erasure"})) == (403, "not-permitted")
    revoke_handles(node, "anna")
    assert holder.get("/v1/me/state").status_code == 401


def test_a_receipt_is_a_page_for_whoever_asks_for_one(anna: Person) -> None:
    record = anna.give("contact").json()["record"]
    headers = {**anna.headers, "Accept": "text/html", "Accept-Language": "zh-CN"}
    negotiated = anna.client.get(f"/v1/me/receipts/{record}", headers=headers)
    page = anna.get(f"/v1/me/receipts/{record}/page?lang=en")

    assert negotiated.headers["content-type"].startswith("text/html")
    assert '<html lang="zh-Hans">' in negotiated.text
    assert '<html lang="en">' in page.text
    assert "style-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert anna.get("/v1/ladder").headers["content-security-policy"].startswith("default-src")


def test_nobody_gets_a_receipt_of_another_or_without_a_controller(
    node: Node, anna: Person, tmp_path: Path
) -> None:
    record = anna.give("contact").json()["record"]
    ben = Person(anna.client, issue_handle(node, "ben"))
    with new_node("birch", tmp_path) as bare:
        carl = person(bare, "carl")
        undeclared = carl.give("contact").json()["record"]

        assert problem(carl.get(f"/v1/me/receipts/{undeclared}")) == (409, "not-declared")
        assert problem(carl.get("/v1/me/export")) == (409, "not-declared")
    assert problem(ben.get(f"/v1/me/receipts/{record}")) == (404, "unknown-record")
    assert ben.get("/v1/me/receipts").json() == {"receipts": []}
    assert problem(anna.get("/v1/me/receipts/1")) == (422, "invalid")
    with pytest.raises(UnknownRecord, match=r"no record .* of this person; nothing was issued"):
        Receipts(node, Handles.of(node)).issue(node.register.subject_ref("ben"), record)


def test_a_receipt_keeps_the_words_and_the_name_of_its_day(node: Node, anna: Person) -> None:
    record = anna.give("contact").json()["record"]
    text = receipt_of(anna, record)
    own = node.config.folder.parent / "counsel.toml"
    packaged = resources.files("consent").joinpath("profiles", "eu-gdpr.toml").read_text("utf-8")
    own.write_text(packaged.replace("We write to you", "We shall write to you"), encoding="utf-8")
    moved = dataclasses.replace(CONTROLLER, address="2 Market Street")
    node.close()
    config = dataclasses.replace(node.config, profile_file=own, controller=moved)
    with Node.open(config, clock=node.clock) as again:
        later = person(again, "anna")
        later.keys = iter(range(500, 600))
        assert again.ladder.rules[Purpose.CONTACT].description["en"].startswith("We shall")
        old = verify_receipt(receipt_of(later, record), again.identity.public)
        new = later.give("contact").json()["record"]
        newer = verify_receipt(receipt_of(later, new), again.identity.public)

        assert dataclasses.replace(old, proof=None) == dataclasses.replace(
            verify_receipt(text, again.identity.public), proof=None
        )
        assert newer.controller.address == "2 Market Street"
        assert newer.given[0].description.en.startswith("We shall")
        assert newer.circumstances.supersedes == record


def test_a_record_keeps_how_it_was_said(node: Node, anna: Person) -> None:
    told = {"act": "switch", "screen": SCREEN, "shown_at": 5, "operator": "staff/17"}
    node.register.record_age("anna", AgeBand.AGE_13, at=node.clock())
    node.register.record_guardian("anna", reference="file:2026/88", at=node.clock())
    record = anna.give("contact", told=told).json()["record"]
    kept = verify_receipt(receipt_of(anna, record), node.identity.public).circumstances
    act = anna.get("/v1/me/history").json()["acts"][-1]

    assert (kept.act, kept.operator, kept.guardian) == ("switch", "staff/17", "file:2026/88")
    assert kept.screen is not None
    assert kept.screen.version == "8.4.1"
    assert act["circumstances"]["shown_at"] == 5
    assert act["policy"] == node.ladder.digest
    assert problem(anna.give("contact", told={"operator": "Anna Li"})) == (422, "invalid")
    node.register.verify_replay()


PARTNER = CONTROLLER.on(Purpose.RECOMMENDATION).recipients[0]
AT_HOME = dataclasses.replace(PARTNER, country=None, mechanism=None, filing=None)
NEEDED = PurposeDeclaration(
    categories=("precise location",),
    necessity=Words(en="to find the shop", zh="用于查找门店"),
    impact=Words(en="shows where you are", zh="会显示您的位置"),
)


@pytest.mark.parametrize(
    ("purpose", "enough", "short"),
    [
        ("third_party_sharing", PurposeDeclaration(recipients=(AT_HOME,)), None),
        ("audience_overlap", PurposeDeclaration(recipients=(AT_HOME,)), None),
        (
            "cross_border",
            PurposeDeclaration(recipients=(PARTNER,)),
            PurposeDeclaration(recipients=(AT_HOME,)),
        ),
        ("sensitive", NEEDED, PurposeDeclaration(recipients=(PARTNER,))),
    ],
)
def test_nobody_agrees_before_it_is_named_who_or_why(
    tmp_path: Path, purpose: str, enough: PurposeDeclaration, short: PurposeDeclaration | None
) -> None:
    def give(controller: Controller | None, name: str) -> Response:
        config = config_of(name, tmp_path, controller=controller)
        with Node.create(config, clock=Clock()) as node:
            node.register.publish_notice(NOTICE, oldest_accepted=2, at=node.clock())
            return person(node, "anna").give(purpose, separate=True)

    def saying(declared: PurposeDeclaration | None) -> Controller:
        purposes = {} if declared is None else {Purpose(purpose): declared}
        return dataclasses.replace(CONTROLLER, purposes=purposes)

    assert problem(give(None, "amber")) == (422, "not-informed")
    assert problem(give(saying(short), "birch")) == (422, "not-informed")
    assert give(saying(enough), "cedar").status_code == 200


def test_a_person_takes_along_what_the_node_knows(node: Node, anna: Person) -> None:
    anna.give("contact")
    anna.post("/v1/withdraw-all")
    anna.post("/v1/me/requests", {"right": "access", "details": "everything please"})
    document = anna.get("/v1/me/export").json()

    assert document["schema"] == "tillpact.subject-export/1"
    assert [act["type"] for act in document["history"]] == [
        "consent.recorded",
        "consent.withdrawn",
        "rights.opened",
    ]
    found = parse_27560(json.dumps(document["records"][0]))
    assert found.record.given == {Purpose.CONTACT}
    assert document["requests"][0]["details"] == "everything please"
    assert {each["status"] for each in document["state"]["purposes"]} == {"withdrawn"}


def test_a_request_has_a_clock_and_is_made_once(node: Node, anna: Person) -> None:
    body = {"right": "rectification", "details": "my street"}
    first = anna.post("/v1/me/requests", body, key="request-1")
    again = anna.post("/v1/me/requests", body, key="request-1")
    (listed,) = anna.get("/v1/me/requests").json()["requests"]

    assert first.json() == again.json()
    assert first.json()["state"] == "open"
    assert 28 * DAY_MS <= first.json()["due_at"] - node.clock() <= 31 * DAY_MS
    assert (listed["request"], listed["state"]) == (first.json()["request"], "open")
    assert problem(anna.post("/v1/me/requests", {"right": "gift"})) == (422, "invalid")


@pytest.mark.parametrize(
    ("right", "flag"), [("objection", "objected"), ("restriction", "restricted")]
)
def test_what_the_node_can_do_itself_is_done_at_once(anna: Person, right: str, flag: str) -> None:
    anna.give("contact", "recommendation")
    done = anna.post("/v1/me/requests", {"right": right, "purposes": ["contact"]})
    state = anna.state()

    assert done.json() == {"request": None, "state": "answered", "due_at": None}
    assert (state["contact"][flag], state["recommendation"][flag]) == (True, False)
    assert anna.get("/v1/me/requests").json()["requests"][0]["state"] == "answered"


def test_staff_answers_refuses_and_extends_with_a_grant(
    node: Node, anna: Person, rights: Rights
) -> None:
    govern(node)
    ids = [
        anna.post("/v1/me/requests", {"right": right}).json()["request"]
        for right in ("access", "explanation", "rectification")
    ]
    granted = {each: grant(node, Action.ANSWER_REQUEST, each) for each in ids}
    at = node.clock()
    rights.answer(ids[0], answer="sent on paper", grant=granted[ids[0]], at=at)
    rights.refuse(ids[1], reason="no decision was automated", grant=granted[ids[1]], at=at)
    due = rights.extend(ids[2], reason="archives", grant=granted[ids[2]], at=at)
    answered, refused, extended = anna.get("/v1/me/requests").json()["requests"]

    assert (answered["state"], answered["answer"]) == ("answered", "sent on paper")
    assert (refused["state"], refused["reason"]) == ("refused", "no decision was automated")
    assert (extended["state"], extended["due_at"], extended["reason"]) == ("open", due, "archives")
    assert [request.request_id for request in rights.all_open()] == [ids[2]]
    assert rights.overdue(at=due) == []
    assert [request.request_id for request in rights.overdue(at=due + 1)] == [ids[2]]
    with pytest.raises(RightsError, match="a request is extended once, and before it is due"):
        rights.extend(ids[2], reason="again", grant=granted[ids[2]], at=at)
    with pytest.raises(RightsError, match="no open request has this id; nothing was recorded"):
        rights.answer(ids[0], answer="again", grant=granted[ids[0]], at=at)
    with pytest.raises(RightsError, match="must have 1 to 2000 characters"):
        rights.refuse(ids[2], reason=" ", grant=granted[ids[2]], at=at)
    with pytest.raises(AccessDenied, match="the grant is not one to answer_request"):
        rights.answer(ids[2], answer="yes", grant=granted[ids[0]], at=at)


def test_under_pipl_an_answer_is_due_in_working_days_and_not_extended(tmp_path: Path) -> None:
    with Node.create(config_of("amber", tmp_path, profile=Profile.CN_PIPL), clock=Clock()) as node:
        govern(node)
        handles = Handles.of(node)
        rights = Rights(node, handles)
        opened = rights.open("anna", RequestKind.ACCESS, at=node.clock())  # type: ignore[arg-type]

        assert opened is not None
        assert 19 <= (opened.due_at - node.clock()) / DAY_MS <= 21
        granted = grant(node, Action.ANSWER_REQUEST, opened.request_id)
        with pytest.raises(RightsError, match="the profile cn-pipl allows no extension"):
            rights.extend(opened.request_id, reason="x", grant=granted, at=node.clock())


def test_erasure_leaves_nothing_of_a_person(node: Node, anna: Person, rights: Rights) -> None:
    govern(node)
    ben = Person(anna.client, issue_handle(node, "ben"))
    ben.give("contact")
    record = anna.give("contact", "recommendation").json()["record"]
    index = anna.get("/v1/me/history").json()["acts"][0]["log_index"]
    key = verify_receipt(receipt_of(anna, record), node.identity.public).subject_key
    access = anna.post("/v1/me/requests", {"right": "access"}).json()["request"]
    erasure = anna.post("/v1/me/requests", {"right": "erasure"}).json()["request"]
    at, root = node.clock(), node.log.root_at(node.log.tree_size)
    size = node.log.tree_size
    with pytest.raises(RightsError, match="the request is one for access, not to erase"):
        rights.erase(access, grant=grant(node, Action.ERASE_SUBJECT, access), at=at)
    with pytest.raises(RightsError, match="a request to erase is answered by erasing, or refused"):
        rights.answer(
            erasure, answer="yes", grant=grant(node, Action.ANSWER_REQUEST, erasure), at=at
        )
    rights.erase(erasure, grant=grant(node, Action.ERASE_SUBJECT, erasure), at=at)
    fresh = Person(anna.client, issue_handle(node, "anna"))

    assert anna.get("/v1/me/state").status_code == 401
    assert Person(anna.client, key).get("/v1/me/receipts").status_code == 401
    assert fresh.get("/v1/me/receipts").json() == {"receipts": []}
    assert fresh.get("/v1/me/requests").json() == {"requests": []}
    assert not any(each["permitted"] for each in fresh.state().values())
    assert rights.all_open() == []
    assert node.log.root_at(size) == root
    with pytest.raises(SealError):
        node.log.opened(index)
    with node.log.reading() as connection:
        rows = connection.execute("SELECT DISTINCT subject_ref FROM service_answer").fetchall()
    assert rows == [(node.register.subject_ref("ben"),)]
    assert ben.state()["contact"]["permitted"]


def test_an_erasure_reaches_every_id_that_was_merged(
    node: Node, anna: Person, rights: Rights
) -> None:
    govern(node)
    other = Person(anna.client, issue_handle(node, "anna-2"))
    other.give("contact")
    anna.give("contact")
    node.register.merge("anna", "anna-2", at=node.clock())
    asked = other.post("/v1/me/requests", {"right": "erasure"}).json()["request"]
    rights.erase(asked, grant=grant(node, Action.ERASE_SUBJECT, asked), at=node.clock())

    assert anna.get("/v1/me/state").status_code == 401
    assert other.get("/v1/me/state").status_code == 401
    assert not node.register.mask(["anna", "anna-2"], Purpose.CONTACT, at=node.clock()).any()


def test_one_person_cannot_fill_the_list(anna: Person, node: Node, rights: Rights) -> None:
    ref = node.register.subject_ref("anna")
    for _ in range(MOST_OPEN):
        rights.open(ref, RequestKind.ACCESS, at=node.clock())

    assert problem(anna.post("/v1/me/requests", {"right": "access"})) == (422, "invalid")
    assert anna.post("/v1/me/requests", {"right": "objection"}).status_code == 200
    with pytest.raises(RightsError, match="20 requests of this person are open already"):
        rights.open(ref, RequestKind.ACCESS, at=node.clock())
    with pytest.raises(RightsError, match="the details must have at most 2000 characters"):
        rights.open(ref, RequestKind.OBJECTION, at=node.clock(), details="x" * 2001)


def test_a_rule_can_stop_giving_and_never_stop_taking_back(node: Node, tmp_path: Path) -> None:
    """Rules in force that differ from the engine's refuse what widens, and log it."""
    anna = person(node, "anna")
    anna.give("contact")
    before = node.log.tree_size
    node.access = type(node.access)(CedarEngine(SHIPPED), node.log, activated=lambda: "00" * 32)

    assert problem(anna.give("recommendation")) == (403, "not-permitted")
    assert problem(anna.get("/v1/me/state")) == (403, "not-permitted")
    assert anna.post("/v1/withdraw-all").status_code == 200
    assert anna.post("/v1/me/requests", {"right": "objection"}).status_code == 200
    denied = [entry.value for entry in node.log.entries(before) if entry.value.get("type")]
    assert {event["type"] for event in denied} == {"access.denied"}
    assert node.register.subject_ref("anna") not in json.dumps(denied)


def test_what_a_person_may_do_leaves_no_open_entry(node: Node, anna: Person) -> None:
    size = node.log.tree_size
    anna.get("/v1/me/state")
    anna.get("/v1/me/history")
    anna.give("contact")

    assert [entry.value.get("k") for entry in node.log.entries(size)] == ["sealed"]


def test_only_a_persons_own_request_is_judged_without_an_entry(node: Node) -> None:
    operator = AccessRequest(actor="op-1", role=Role.OPERATOR, action=Action.READ_LOG)
    other = AccessRequest(
        actor="a" * 64, role=Role.SUBJECT, action=Action.READ_OWN_STATE, owner="b" * 64
    )
    with pytest.raises(ValueError, match="only what a data subject asks is judged without an"):
        node.access.judge_own(operator, at=node.clock())
    with pytest.raises(AccessDenied, match="forbidden to the role subject"):
        node.access.judge_own(other, at=node.clock())


def test_a_handle_ends_after_its_days(node: Node) -> None:
    anna = person(node, "anna")
    clock = node.clock
    clock.now += 30 * DAY_MS - 1  # type: ignore[attr-defined]
    assert anna.get("/v1/me/state").status_code == 200
    clock.now += 60_001  # type: ignore[attr-defined]
    assert problem(anna.get("/v1/me/state")) == (401, "not-authenticated")
    with pytest.raises(ValueError, match="a handle must last at least 1 day, got 0"):
        Handles(node.log, key=bytes(32), clock=clock, days=0)


def test_a_login_system_gets_handles_from_the_served_node(node: Node) -> None:
    client = client_of(create_app(node))
    body = {"subject": "anna"}
    before = client.post("/v1/handles", json=body, headers={"Authorization": "Bearer "})
    path = make_issuer_token(node.config.folder)
    token = read_issuer_token(node.config.folder)
    headers = {"Authorization": f"Bearer {token}"}
    issued = client.post("/v1/handles", json=body, headers=headers)
    anna = Person(client, issued.json()["handle"])

    assert before.headers["content-type"] == MEDIA_TYPE
    assert before.status_code == 401
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert make_issuer_token(node.config.folder) == path
    assert read_issuer_token(node.config.folder) == token
    assert issued.json()["expires_at"] >= node.clock() + 30 * DAY_MS
    assert anna.give("contact").status_code == 200
    assert node.register.mask(["anna"], Purpose.CONTACT, at=node.clock()).all()
    wrong = client.post("/v1/handles", json=body, headers={"Authorization": f"Bearer {token}x"})
    assert problem(wrong) == (401, "not-authenticated")
    assert client.post("/v1/handles/revoke", json=body, headers=headers).json() == {"revoked": True}
    assert anna.get("/v1/me/state").status_code == 401
    assert problem(client.post("/v1/handles", json={}, headers=headers)) == (422, "invalid")


def test_a_token_that_others_can_read_is_no_token(node: Node) -> None:
    path = make_issuer_token(node.config.folder)
    token = read_issuer_token(node.config.folder)
    path.chmod(0o644)
    client = client_of(create_app(node))
    headers = {"Authorization": f"Bearer {token}"}

    assert client.post("/v1/handles", json={"subject": "a"}, headers=headers).status_code == 401
    with pytest.raises(NodeError, match="must hold a token and be readable by its owner only; no"):
        make_issuer_token(node.config.folder)
