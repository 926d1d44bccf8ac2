import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from consent import (
    Action,
    Identity,
    Purpose,
    Role,
    TrustPolicy,
    cosign,
    verify_dossier,
    verify_evidence_pack,
)
from participant.accounts import TOKEN_LIFE_MS, code_of
from participant.handle import issue_handle
from participant.node import Node
from participant.partners import RecipientSettings, Spreading
from tests.federation.synthetic import (
    DAY_MS,
    Clock,
    Federation,
    agree,
    config_of,
    events,
    govern,
    kinds,
)

from .service_client import Person, new_node
from .staff_client import Member, Staff
from .test_subject_api import problem

pytestmark = pytest.mark.usefixtures("both_stores")

CANARY = "canary-person-17"
CASE = {"subject": CANARY, "reason": "subject_request"}


@pytest.fixture
def staff(tmp_path: Path) -> Iterator[Staff]:
    clock = Clock()
    with new_node("amber", tmp_path, clock=clock) as node:
        agree(node, [CANARY, "ben"])
        yield Staff.of(node, clock)


def own_policy(node: Node) -> TrustPolicy:
    return TrustPolicy(logs=(node.identity.public,), witnesses={}, groups={}, quorum="none")


def approved_case(staff: Staff, body: dict[str, str] | None = None) -> str:
    case = str(staff.officer.post("/v1/cases", body or CASE).json()["case"])
    assert staff.officer.post(f"/v1/cases/{case}/unseal").status_code == 200
    staff.second.step_up()
    assert staff.second.post(f"/v1/cases/{case}/approve").status_code == 200
    return case


def test_two_officers_get_a_dossier_that_proves_to_be_complete(staff: Staff) -> None:
    case = approved_case(staff)
    staff.officer.step_up()
    node = staff.node
    node.register.withdraw(CANARY, None, at=staff.clock())
    answer = staff.officer.get(f"/v1/cases/{case}/dossier")
    proved = verify_dossier(answer.content, own_policy(node))

    assert answer.status_code == 200
    assert [event["type"] for event in proved.events] == ["consent.recorded", "consent.withdrawn"]
    assert proved.complete == 2
    assert proved.subject == node.register.subject_ref(CANARY)
    assert answer.headers["tillpact-complete-until"] == str(proved.complete_until)
    assert answer.headers["tillpact-cosigned"] == "no"
    told = [kind for kind in kinds(node) if kind.split(".")[0] in {"case", "unseal"}]
    assert told == ["case.opened", "unseal.requested", "unseal.approved", "unseal.done"]
    assert staff.officer.get("/v1/cases").json()["cases"][0]["handed_out"] == 1


def test_a_person_is_found_by_handle_and_one_unknown_is_proved_absent(staff: Staff) -> None:
    by_handle = {"handle": issue_handle(staff.node, CANARY), "reason": "audit"}
    for body, count in ((by_handle, 1), ({"subject": "nobody", "reason": "audit"}, 0)):
        case = approved_case(staff, body)
        staff.officer.step_up()
        answer = staff.officer.get(f"/v1/cases/{case}/dossier")
        assert len(verify_dossier(answer.content, own_policy(staff.node)).events) == count


def test_nobody_unseals_alone(staff: Staff) -> None:
    case = staff.officer.post("/v1/cases", CASE).json()["case"]
    staff.officer.step_up()
    early = staff.officer.get(f"/v1/cases/{case}/dossier")
    staff.officer.post(f"/v1/cases/{case}/unseal")
    own = staff.officer.post(f"/v1/cases/{case}/approve")
    without = staff.officer.get(f"/v1/cases/{case}/dossier")
    staff.second.step_up()
    not_asked = staff.second.get(f"/v1/cases/{case}/dossier")

    assert problem(early) == (409, "step-not-possible")
    assert problem(own) == (403, "second-person-needed")
    assert problem(without) == (409, "step-not-possible")
    assert problem(not_asked) == (409, "step-not-possible")
    assert "unseal.approved" not in kinds(staff.node)
    assert "unseal.done" not in kinds(staff.node)


def test_a_dossier_goes_to_who_asked_and_a_new_request_needs_a_new_approval(staff: Staff) -> None:
    case = approved_case(staff)
    staff.officer.step_up()
    approver = staff.second.get(f"/v1/cases/{case}/dossier")
    first = staff.officer.get(f"/v1/cases/{case}/dossier")
    staff.officer.post(f"/v1/cases/{case}/unseal")
    again = staff.officer.get(f"/v1/cases/{case}/dossier")

    assert first.status_code == 200
    assert problem(approver) == problem(again) == (409, "step-not-possible")


def test_a_stale_second_factor_neither_approves_nor_hands_out(staff: Staff) -> None:
    case = staff.officer.post("/v1/cases", CASE).json()["case"]
    staff.officer.post(f"/v1/cases/{case}/unseal")
    never = staff.second.post(f"/v1/cases/{case}/approve")
    staff.second.step_up()
    staff.clock.now += 301_000
    stale = staff.second.post(f"/v1/cases/{case}/approve")
    staff.second.step_up()
    staff.second.post(f"/v1/cases/{case}/approve")
    unread = staff.officer.get(f"/v1/cases/{case}/dossier")

    for response in (never, stale, unread):
        assert problem(response) == (403, "step-up-needed")
    denied = [event for event in events(staff.node) if event["type"] == "access.denied"]
    assert [event["action"] for event in denied] == [
        Action.UNSEAL,
        Action.UNSEAL,
        Action.EXPORT_EVIDENCE,
    ]


def test_an_approval_ends_after_a_day_and_with_the_next_request(staff: Staff) -> None:
    case = approved_case(staff)
    staff.clock.now += DAY_MS
    staff.officer.step_up()
    late = staff.officer.get(f"/v1/cases/{case}/dossier")
    again = approved_case(staff)
    staff.second.post(f"/v1/cases/{again}/unseal")
    replaced = staff.officer.get(f"/v1/cases/{again}/dossier")

    assert problem(late) == (409, "step-not-possible")
    assert problem(replaced)[0] in {403, 409}
    assert "unseal.done" not in kinds(staff.node)


@pytest.mark.parametrize("role", ["operator", "author", "approver", "scorer"])
def test_no_other_role_opens_or_approves_a_case(staff: Staff, role: str) -> None:
    case = staff.officer.post("/v1/cases", CASE).json()["case"]
    staff.officer.post(f"/v1/cases/{case}/unseal")
    member: Member = getattr(staff, role)
    if member.made.uri:
        member.step_up()

    assert problem(member.post("/v1/cases", CASE))[0] == 403
    assert problem(member.post(f"/v1/cases/{case}/unseal"))[0] == 403
    assert problem(member.post(f"/v1/cases/{case}/approve"))[0] == 403
    assert problem(member.get(f"/v1/cases/{case}/dossier"))[0] == 403
    assert problem(member.post("/v1/exports", {"since": 0, "until": 2**40}))[0] == 403


def test_a_case_says_nothing_of_its_person_and_two_are_not_joined(staff: Staff) -> None:
    first, second = approved_case(staff), approved_case(staff)
    staff.officer.step_up()
    staff.officer.get(f"/v1/cases/{first}/dossier")
    listed = staff.officer.get("/v1/cases").text
    leaves = b"".join(entry.leaf for entry in staff.node.log.entries())
    ref = staff.node.register.subject_ref(CANARY)

    assert first != second
    for secret in (CANARY, ref, issue_handle(staff.node, CANARY), staff.officer.made.token):
        assert secret.encode() not in leaves
        assert secret not in listed


def test_cases_outlive_the_process(staff: Staff) -> None:
    case = approved_case(staff)
    before = staff.officer.get("/v1/cases").json()
    staff.node.close()
    with Node.open(staff.node.config, clock=staff.clock) as node:
        client = staff.reopened(node)
        assert client.officer.get("/v1/cases").json() == before
        client.officer.step_up()
        answer = client.officer.get(f"/v1/cases/{case}/dossier")
        assert verify_dossier(answer.content, own_policy(node)).complete == 1


def test_a_write_is_done_once_and_a_refusal_stays_in_the_log(staff: Staff) -> None:
    first = staff.officer.post("/v1/cases", CASE, key="one-and-the-same")
    again = staff.officer.post("/v1/cases", CASE, key="one-and-the-same")
    other = staff.officer.post("/v1/cases", {**CASE, "reason": "audit"}, key="one-and-the-same")
    size = staff.node.log.tree_size
    refused = staff.operator.post("/v1/cases", CASE, key="one-and-the-same")

    assert first.json() == again.json()
    assert problem(other) == (409, "key-reused")
    assert problem(refused) == (403, "not-permitted")
    assert kinds(staff.node, after=size) == ["access.denied"]
    assert kinds(staff.node).count("case.opened") == 1


@pytest.mark.parametrize(
    "body",
    [
        {"reason": "audit"},
        {"subject": "a", "handle": "b", "reason": "audit"},
        {"handle": "not-a-handle", "reason": "audit"},
        {"subject": "a", "reason": "because"},
        {"subject": "a", "reason": "audit", "note": "free text"},
    ],
)
def test_a_case_needs_one_person_and_a_known_reason(staff: Staff, body: dict[str, str]) -> None:
    assert problem(staff.officer.post("/v1/cases", body)) == (422, "invalid")
    assert problem(staff.officer.post("/v1/cases/case-0/unseal")) == (404, "unknown-case")


def test_tokens_that_ended_were_revoked_or_are_nobodys_open_nothing(staff: Staff) -> None:
    handle = Person(staff.client, issue_handle(staff.node, CANARY))
    nobody = problem(staff.client.get("/v1/events"))
    person = problem(handle.get("/v1/events"))
    staff.operator.step_up()
    staff.operator.post(f"/v1/accounts/{staff.second.account}/revoke")
    revoked = problem(staff.second.get("/v1/events"))
    assert staff.officer.get("/v1/events").status_code == 200
    staff.clock.now += TOKEN_LIFE_MS
    ended = problem(staff.officer.get("/v1/events"))

    assert {nobody, person, revoked, ended} == {(401, "not-signed-in")}
    # A token opens nothing of a customer either.
    assert problem(staff.operator.get("/v1/me/state")) == (401, "not-authenticated")


def test_a_code_counts_once_over_http_and_too_many_wrong_ones_wait(staff: Staff) -> None:
    code = {"code": "000000"}
    answers = [staff.officer.post("/v1/session/step-up", code) for _ in range(6)]
    assert [problem(each)[1] for each in answers] == ["code-refused"] * 4 + ["too-many-codes"] * 2
    assert answers[-1].headers["retry-after"] in {"30", "31"}
    assert staff.officer.step_up().status_code == 200
    used = {"code": code_of(staff.officer.made.uri, at=staff.clock())}
    assert problem(staff.officer.post("/v1/session/step-up", used)) == (403, "code-refused")
    assert problem(staff.officer.post("/v1/session/step-up", {"code": "12"})) == (422, "invalid")
    assert kinds(staff.node).count("account.refused") == 6


def test_events_are_filtered_paged_and_each_reading_is_an_event(staff: Staff) -> None:
    size = staff.node.log.tree_size
    first = staff.officer.get("/v1/events", type="account.added", limit=2).json()
    rest = staff.officer.get("/v1/events", type="account.added", start=first["next"]).json()
    none = staff.officer.get("/v1/events", until=1).json()
    sealed = staff.officer.get("/v1/events", type="consent.recorded").json()

    assert [len(first["events"]), len(rest["events"]), rest["next"]] == [2, 6, None]
    assert first["events"][0]["account"] == staff.officer.account
    assert none["events"] == sealed["events"] == []
    assert kinds(staff.node, after=size) == ["access.allowed"] * 4
    assert events(staff.node)[-1]["actor"] == staff.officer.account
    assert problem(staff.scorer.get("/v1/events")) == (403, "not-permitted")


def test_a_pack_is_made_once_and_verifies_and_taking_it_is_an_event(staff: Staff) -> None:
    body = {"since": 0, "until": staff.clock() + DAY_MS}
    early = staff.officer.post("/v1/exports", body)
    staff.officer.step_up()
    made = staff.officer.post("/v1/exports", body, key="pack-of-today")
    again = staff.officer.post("/v1/exports", body, key="pack-of-today")
    size = staff.node.log.tree_size
    pack = staff.officer.get(f"/v1/exports/{made.json()['export']}")

    assert problem(early) == (403, "step-up-needed")
    assert made.json() == again.json()
    assert kinds(staff.node).count("export.made") == 1
    assert kinds(staff.node, after=size) == ["access.allowed"]
    assert verify_evidence_pack(pack.content, own_policy(staff.node)).origin == "amber"
    assert CANARY.encode() not in pack.content
    assert zipfile.ZipFile(io.BytesIO(pack.content)).testzip() is None
    (path,) = (staff.node.config.folder / "exports").glob("*.zip")
    path.write_bytes(b"something else")
    assert problem(staff.officer.get(f"/v1/exports/{path.stem}")) == (404, "unknown-export")
    assert problem(staff.officer.get("/v1/exports/none")) == (404, "unknown-export")
    empty = staff.officer.post("/v1/exports", {"since": 5, "until": 5})
    assert problem(empty) == (422, "invalid")


def test_health_tells_strangers_one_word_and_staff_how_the_node_stands(staff: Staff) -> None:
    size = staff.node.log.tree_size
    stranger = staff.client.get("/v1/health").json()
    told = [staff.operator.get("/v1/health").json() for _ in range(3)]

    assert stranger == {"alive": True}
    assert told[0]["entries"] == size + 1
    assert told[0]["budgets"]["federated_training"]["epsilon_spent"] == "0.000000"
    assert told[0]["checkpoint"]["cosigners"] == []
    assert told[0]["rules"] == staff.node.rulebook.active_digest()
    assert kinds(staff.node, after=size) == ["access.allowed"]
    assert problem(staff.scorer.get("/v1/health")) == (403, "not-permitted")


def test_rules_and_assessments_are_put_in_force_by_two_over_http(staff: Staff) -> None:
    proposal = staff.author.post("/v1/policies:propose").json()["proposal"]
    own = staff.author.post("/v1/policies:approve", {"proposal": proposal})
    staff.approver.post("/v1/policies:approve", {"proposal": proposal})
    early = staff.approver.post("/v1/policies:activate", {"proposal": proposal})
    staff.approver.step_up()
    staff.approver.post("/v1/policies:activate", {"proposal": proposal})
    draft = {"purpose": "lookalike", "document": "ab" * 32}
    name = staff.author.post("/v1/assessments:draft", draft).json()["assessment"]
    until = {"assessment": name, "valid_until": staff.clock() + DAY_MS}
    approved = staff.approver.post("/v1/assessments:approve", until)
    twice = staff.approver.post("/v1/assessments:approve", until)
    purposes = staff.officer.get("/v1/purposes").json()["purposes"]
    (lookalike,) = [each for each in purposes if each["purpose"] == "lookalike"]

    assert problem(own)[0] == 403
    assert problem(early) == (403, "step-up-needed")
    assert approved.status_code == 200
    assert problem(twice) == (409, "step-not-possible")
    assert lookalike["assessments"][0]["state"] == "approved"
    assert staff.officer.get("/v1/policies").json()["proposals"][-1]["activated_at"]
    past = {"assessment": name, "valid_until": 1}
    assert problem(staff.approver.post("/v1/assessments:approve", past))[0] in {409, 422}


def test_accounts_are_managed_by_two_operators_over_http(staff: Staff) -> None:
    other = Member(
        staff.client,
        staff.node.accounts.add_by_host([Role.OPERATOR], at=staff.clock()),
        staff.clock,
    )
    staff.operator.step_up()
    other.step_up()
    body = {"roles": ["compliance_officer"]}
    name = staff.operator.post("/v1/accounts", body).json()["account"]
    own = staff.operator.post(f"/v1/accounts/{name}/approve")
    approved = other.post(f"/v1/accounts/{name}/approve").json()
    made = other.post(f"/v1/accounts/{name}/enrol").json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    mixed = staff.operator.post("/v1/accounts", {"roles": ["policy_author", "policy_approver"]})
    roles = {"roles": ["operator", "engineer"]}
    staff.operator.post(f"/v1/accounts/{other.account}/roles", roles)
    selfmade = other.post(f"/v1/accounts/{other.account}/approve")
    renewed = staff.operator.post("/v1/session/renew").json()

    assert problem(own) == (409, "step-not-possible")
    assert (approved["roles"], approved["active"]) == (["compliance_officer"], True)
    assert staff.client.get("/v1/events", headers=headers).status_code == 200
    assert problem(mixed) == (409, "step-not-possible")
    assert problem(selfmade) == (409, "step-not-possible")
    assert renewed["token"] != staff.operator.made.token
    listed = {
        each["account"]: each for each in staff.officer.get("/v1/accounts").json()["accounts"]
    }
    assert listed[other.account]["proposed"] == ["engineer", "operator"]
    assert made["token"] not in json.dumps(listed)


def test_an_erased_person_is_gone_from_their_cases_too(staff: Staff) -> None:
    case = approved_case(staff)
    stale = staff.operator.post("/v1/erasures", {"subject": CANARY})
    staff.operator.step_up()
    erased = staff.operator.post("/v1/erasures", {"subject": CANARY})
    staff.officer.step_up()

    assert problem(stale) == (403, "step-up-needed")
    entry = staff.node.log.entry(erased.json()["log_index"])
    assert entry.value["type"] == "subject.erased"
    assert problem(staff.officer.get(f"/v1/cases/{case}/dossier")) == (409, "step-not-possible")
    state = Person(staff.client, issue_handle(staff.node, CANARY)).state()
    assert not any(each["permitted"] for each in state.values())


def test_a_dossier_says_until_when_it_is_proved_when_peers_do_not_answer(
    federation: Federation,
) -> None:
    node, clock = federation.nodes["amber"], federation.clock
    staff = Staff.of_governed(node, clock)
    case = approved_case(staff, {"subject": node.table.subjects[0], "reason": "court"})
    staff.officer.step_up()
    unseen = staff.officer.get(f"/v1/cases/{case}/dossier")
    note = node.log.checkpoint()
    for witness in (federation.host.identity, *(n.identity for n in federation.nodes.values())):
        note = cosign(note, witness, at=clock())
    node.log.accept_cosigned(note, node.trust_policy)
    until = clock()
    seen = staff.officer.get(f"/v1/cases/{case}/dossier")
    clock.now += 7_200_000
    node.register.withdraw(node.table.subjects[0], None, at=clock())
    staff.officer.step_up()
    later = staff.officer.get(f"/v1/cases/{case}/dossier")
    clock.now += DAY_MS
    again = approved_case(staff, {"subject": node.table.subjects[0], "reason": "court"})
    staff.officer.step_up()
    old = staff.officer.get(f"/v1/cases/{again}/dossier")

    assert unseen.headers["tillpact-cosigned"] == "no"
    assert seen.headers["tillpact-cosigned"] == "yes"
    assert verify_dossier(seen.content, federation.policy).complete_until <= until
    # The withdrawal is after what anybody has cosigned: it is not claimed to be in.
    assert verify_dossier(later.content, federation.policy).complete == 1
    assert int(later.headers["tillpact-complete-until"]) <= until
    assert problem(old) == (409, "not-provable-yet")


def test_a_policy_approver_puts_a_notice_in_force_and_readers_see_whom_data_reaches(
    tmp_path: Path,
) -> None:
    settings = RecipientSettings(
        identity=Identity.generate("birch").public, url="", purposes=frozenset({Purpose.LOOKALIKE})
    )
    config = config_of("amber", tmp_path, spreading=Spreading(recipients={"birch": settings}))
    clock = Clock()
    text = "What we do with your purchases.\n" * 900
    body = {"id": "shop", "version": 1, "language": "en", "text": text}
    digest = hashlib.sha256(text.encode()).hexdigest()
    with Node.create(config, clock=clock) as node:
        govern(node)
        staff = Staff.of_governed(node, clock)
        staff.author.step_up()
        author = staff.author.post("/v1/notices", body)
        early = staff.approver.post("/v1/notices", body)
        staff.approver.step_up()
        made = staff.approver.post("/v1/notices", body)
        shown = staff.client.get("/v1/notices/shop").json()["versions"]
        too_long = staff.approver.post("/v1/notices", {**body, "text": "x" * (1 << 20)})
        recipients = staff.officer.get("/v1/recipients").json()["recipients"]

    assert problem(author) == (403, "not-permitted")
    assert problem(early) == (403, "step-up-needed")
    assert made.json()["sha256"] == digest
    assert (config.folder / "notices" / digest).read_text() == text
    assert [(each["version"], each["sha256"]) for each in shown] == [(1, digest)]
    assert problem(too_long) == (413, "body-too-large")
    assert recipients == [{"recipient": "birch", "purposes": ["lookalike"], "handle": "none"}]
