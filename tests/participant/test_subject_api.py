import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consent import Profile, Purpose
from consent.controller import NAMING
from consent.problems import MEDIA_TYPE, Problem
from participant.handle import issue_handle, revoke_handles
from participant.node import Node, NodeError
from participant.service import ServiceSettings, create_app
from participant.subject import ANSWERS_KEPT_MS, MOST_ACTS
from participant.subject_api import speak
from tests.federation.synthetic import DAY_MS, Clock, config_of

from .service_client import NOTICE, NOTICE_FIELDS, Person, client_of, new_node, person


@pytest.fixture
def node(tmp_path: Path, store: str | None) -> Iterator[Node]:
    with new_node("amber", tmp_path, store=store) as made:
        yield made


@pytest.fixture
def anna(node: Node) -> Person:
    return person(node, "anna")


def problem(response: object) -> tuple[int, str]:
    assert response.headers["content-type"] == MEDIA_TYPE  # type: ignore[attr-defined]
    document = response.json()  # type: ignore[attr-defined]
    assert set(document) == {"type", "title", "status"}
    return document["status"], document["type"].removeprefix("/problems/")


def test_what_is_given_is_permitted_and_what_is_withdrawn_is_not(anna: Person, node: Node) -> None:
    given = anna.give("recommendation", "contact", refused=["churn_scoring"])
    before = anna.state()
    anna.post("/v1/consents/recommendation/withdraw")
    after = anna.state()

    assert given.status_code == 200
    assert set(given.json()) == {"record", "log_index", "effective_at", "until"}
    assert given.json()["until"] == node.clock() + 365 * DAY_MS
    assert (before["contact"]["status"], before["contact"]["permitted"]) == ("given", True)
    assert before["churn_scoring"]["status"] == "refused"
    assert before["lookalike"]["status"] == "unknown"
    assert (after["recommendation"]["status"], after["contact"]["status"]) == ("withdrawn", "given")
    assert not node.register.mask(["anna"], Purpose.RECOMMENDATION, at=node.clock()).any()
    node.register.verify_replay()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/withdraw-all", None),
        ("/v1/withdraw-all", {}),
        ("/v1/withdrawals", {"purposes": ["contact", "recommendation"]}),
    ],
)
def test_what_one_call_gave_one_call_takes_back(
    anna: Person, path: str, body: dict[str, object] | None
) -> None:
    anna.give("recommendation", "contact")
    taken = anna.post(path, body)

    assert taken.status_code == 200
    assert not [name for name, each in anna.state().items() if each["permitted"]]


@pytest.mark.parametrize(
    ("path", "flag"), [("objections", "objected"), ("restrictions", "restricted")]
)
def test_an_objection_and_a_restriction_hold_until_they_are_cleared(
    anna: Person, path: str, flag: str
) -> None:
    anna.give("contact", "recommendation")
    anna.post(f"/v1/{path}", {"set": True, "purposes": ["contact"]})
    one = anna.state()
    anna.post(f"/v1/{path}", {"set": True})
    every = anna.state()
    anna.post(f"/v1/{path}", {"set": False})
    none = anna.state()

    assert (one["contact"][flag], one["contact"]["permitted"]) == (True, False)
    assert (one["recommendation"][flag], one["recommendation"]["permitted"]) == (False, True)
    assert all(each[flag] for each in every.values())
    assert none["contact"]["permitted"]
    assert not any(each[flag] for each in none.values())


def test_a_person_reaches_their_own_state_only(node: Node, anna: Person) -> None:
    ben = Person(anna.client, issue_handle(node, "ben"))
    anna.give("contact")
    ben.post("/v1/withdraw-all")

    assert anna.state()["contact"]["permitted"]
    assert ben.state()["contact"]["status"] != "given"
    assert [act["type"] for act in anna.get("/v1/me/history").json()["acts"]] == [
        "consent.recorded"
    ]
    assert [act["type"] for act in ben.get("/v1/me/history").json()["acts"]] == [
        "consent.withdrawn"
    ]


def test_the_history_names_the_log_and_no_pseudonym(node: Node, anna: Person) -> None:
    index = anna.give("contact").json()["log_index"]
    text = anna.get("/v1/me/history").text
    (act,) = anna.get("/v1/me/history").json()["acts"]

    assert act["log_index"] == index
    assert (act["given"], act["channel"], act["notice"]["version"]) == (["contact"], "app", 2)
    assert node.log.opened(index)["record"] == act["record"]
    assert node.register.subject_ref("anna") not in text


def test_a_long_history_comes_in_parts(node: Node, anna: Person) -> None:
    for _ in range(MOST_ACTS + 1):
        node.register.withdraw("anna", [Purpose.CONTACT], at=node.clock())
    first = anna.get("/v1/me/history").json()
    second = anna.get(f"/v1/me/history?start={first['next']}").json()

    assert (len(first["acts"]), len(second["acts"])) == (MOST_ACTS, 1)
    assert second["next"] is None


def test_a_merged_person_sees_the_acts_of_both_ids(node: Node, anna: Person) -> None:
    anna.give("contact")
    node.register.withdraw("anna-2", at=node.clock())
    node.register.merge("anna", "anna-2", at=node.clock())

    acts = anna.get("/v1/me/history").json()["acts"]

    assert {act["type"] for act in acts} == {
        "consent.recorded",
        "consent.withdrawn",
        "subject.merged",
    }


def test_an_erased_person_has_no_history(node: Node, anna: Person) -> None:
    anna.give("contact")
    node.register.erase("anna", at=node.clock())

    assert anna.get("/v1/me/history").json() == {"acts": [], "next": None}
    assert not anna.state()["contact"]["permitted"]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer x", "Basic abc", "Bearer ü"])
def test_without_a_handle_nothing_is_told(anna: Person, authorization: str) -> None:
    headers = [("Authorization", authorization.encode())]
    response = anna.client.get("/v1/me/state", headers=headers)  # type: ignore[arg-type]

    assert problem(response) == (401, "not-authenticated")
    assert response.headers["www-authenticate"] == "Bearer"


def test_no_changed_character_of_a_handle_is_accepted(anna: Person) -> None:
    good = anna.handle
    for place in range(len(good)):
        anna.handle = good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :]
        assert anna.get("/v1/me/state").status_code == 401, place
    anna.handle = good + "="
    assert anna.get("/v1/me/state").status_code == 401


def test_a_revoked_handle_is_refused_and_a_new_one_works(node: Node, anna: Person) -> None:
    ben = Person(anna.client, issue_handle(node, "ben"))
    revoke_handles(node, "anna")

    assert problem(anna.get("/v1/me/state")) == (401, "not-authenticated")
    assert ben.get("/v1/me/state").status_code == 200
    assert Person(anna.client, issue_handle(node, "anna")).get("/v1/me/state").status_code == 200
    revoke_handles(node, "anna")
    assert anna.get("/v1/me/state").status_code == 401


def test_a_handle_of_another_node_is_refused(anna: Person, tmp_path: Path) -> None:
    with new_node("birch", tmp_path) as other:
        anna.handle = issue_handle(other, "anna")

    assert anna.get("/v1/me/state").status_code == 401


def test_the_key_of_the_handles_is_its_owners_only(node: Node, anna: Person) -> None:
    path = node.config.folder / "handle.key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)

    with pytest.raises(NodeError, match="must hold 32 bytes and be readable by its owner only"):
        issue_handle(node, "anna")


def test_no_handle_and_no_key_is_logged(
    node: Node, anna: Person, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    anna.give("contact", key="secret-key-1")
    anna.give("contact", key="secret-key-1", channel="till")
    anna.get("/v1/me/state")
    node.log.close()
    anna.post("/v1/withdraw-all", key="secret-key-2")

    assert caplog.records
    assert anna.handle not in caplog.text
    assert "secret-key" not in caplog.text
    assert node.register.__class__.__name__ not in caplog.text


def test_the_same_key_and_body_are_answered_once(node: Node, anna: Person) -> None:
    first = anna.give("contact", "recommendation", key="once-upon")
    size = node.log.tree_size
    again = anna.give("recommendation", "contact", key="once-upon")
    restarted = person(node, "anna").give("contact", "recommendation", key="once-upon")

    assert first.json() == again.json() == restarted.json()
    assert node.log.tree_size == size


def test_the_same_key_for_something_else_is_refused(node: Node, anna: Person) -> None:
    anna.give("contact", key="once-upon")
    size = node.log.tree_size
    others = [
        anna.give("recommendation", key="once-upon"),
        anna.post("/v1/withdraw-all", key="once-upon"),
        anna.post("/v1/consents/contact/withdraw", key="once-upon"),
    ]

    assert {problem(other) for other in others} == {(409, "key-reused")}
    assert node.log.tree_size == size


def test_two_people_may_use_the_same_key(node: Node, anna: Person) -> None:
    ben = Person(anna.client, issue_handle(node, "ben"))

    assert anna.give("contact", key="same-key").status_code == 200
    assert ben.give("recommendation", key="same-key").status_code == 200


def test_a_kept_answer_is_forgotten_after_a_week(tmp_path: Path) -> None:
    clock = Clock()
    with new_node("amber", tmp_path, clock=clock) as node:
        anna = person(node, "anna")
        first = anna.give("contact", key="once-upon")
        clock.now += ANSWERS_KEPT_MS + 1
        anna.give("recommendation")
        again = anna.give("contact", key="once-upon")

        assert again.json()["log_index"] > first.json()["log_index"]


def test_a_failure_after_the_commit_does_not_double_the_act(node: Node) -> None:
    app = create_app(node)

    class Stumbles:
        """The answer of the first request is lost after it was made."""

        def __init__(self, inner: object) -> None:
            self.inner, self.calls = inner, 0

        async def __call__(self, scope: object, receive: object, send: object) -> None:
            async def lose(message: object) -> None:
                raise OSError("the line is down")

            self.calls += 1
            await self.inner(scope, receive, lose if self.calls == 1 else send)  # type: ignore[operator]

    anna = Person(client_of(Stumbles(app)), issue_handle(node, "anna"))  # type: ignore[arg-type]
    size = node.log.tree_size

    anna.give("contact", key="once-upon")
    assert node.log.tree_size == size + 1
    again = anna.give("contact", key="once-upon")

    assert again.status_code == 200
    assert again.json()["log_index"] == size
    assert node.log.tree_size == size + 1


def test_a_refused_act_leaves_its_key_free(node: Node, anna: Person) -> None:
    refused = anna.give(
        "federated_training", key="once-upon", notice={**NOTICE_FIELDS, "version": 3}
    )

    assert problem(refused) == (422, "notice-not-accepted")
    assert anna.give("contact", key="once-upon").status_code == 200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"given": []}, "invalid"),
        ({"given": ["nonsense"]}, "invalid"),
        ({"refused": ["contact"]}, "invalid"),
        ({"surprise": 1}, "invalid"),
        ({"separate": "yes"}, "invalid"),
        ({"channel": "Zoë's app"}, "invalid"),
        ({"notice": {**NOTICE_FIELDS, "more": 1}}, "invalid"),
        ({"notice": {**NOTICE_FIELDS, "version": 1}}, "notice-not-accepted"),
        ({"notice": {**NOTICE_FIELDS, "sha256": "cd" * 32}}, "notice-not-accepted"),
        ({"notice": {**NOTICE_FIELDS, "id": "other"}}, "notice-not-accepted"),
        ({"given": ["cross_border"]}, "separate-act-needed"),
        ({"given": ["contact", "recommendation"], "separate": True}, "separate-act-needed"),
    ],
)
def test_an_act_that_would_not_count_is_refused(
    node: Node, anna: Person, changes: dict[str, object], expected: str
) -> None:
    size = node.log.tree_size
    body = {"given": ["contact"], "notice": NOTICE_FIELDS, "channel": "app", **changes}

    assert problem(anna.post("/v1/consents", body)) == (422, expected)
    assert node.log.tree_size == size


def test_a_purpose_that_the_law_does_not_allow_is_refused(tmp_path: Path) -> None:
    with Node.create(config_of("amber", tmp_path, profile=Profile.CN_PIPL), clock=Clock()) as node:
        node.register.publish_notice(NOTICE, oldest_accepted=1, at=node.clock())
        anna = person(node, "anna")
        rules = node.register.ladder.rules
        for purpose in Purpose:
            answer = anna.give(purpose, separate=rules[purpose].separate)
            is_accepted = rules[purpose].allowed and purpose not in NAMING
            assert answer.status_code == (200 if is_accepted else 422), purpose


def test_a_separate_purpose_is_given_alone(anna: Person) -> None:
    assert anna.give("lookalike", separate=True).status_code == 200
    assert anna.state()["lookalike"]["separate"] is True


@pytest.mark.parametrize(
    "body", ["{", "[]", '"x"', "[" * 4000, '{"set": true, "set2": 1}', "\u00e9", "{}"]
)
def test_a_body_that_is_none_is_one_sentence(anna: Person, body: str) -> None:
    headers = {**anna.headers, "Idempotency-Key": "key-0001", "Content-Type": "application/json"}
    response = anna.client.post("/v1/objections", content=body, headers=headers)

    assert problem(response)[0] in (400, 422)


def test_bytes_that_are_no_text_are_malformed(anna: Person) -> None:
    headers = {**anna.headers, "Idempotency-Key": "key-0001", "Content-Type": "application/json"}
    response = anna.client.post("/v1/objections", content=b'{"set":"\xff"}', headers=headers)

    assert problem(response) == (400, "malformed")


def test_a_withdrawal_with_unknown_fields_is_refused(anna: Person) -> None:
    assert problem(anna.post("/v1/withdraw-all", {"except": "contact"})) == (422, "invalid")


@pytest.mark.parametrize("key", [None, "short", "x" * 129, "with space in it"])
def test_a_write_needs_a_key(anna: Person, key: str | None) -> None:
    headers = anna.headers if key is None else {**anna.headers, "Idempotency-Key": key}
    response = anna.client.post("/v1/withdraw-all", headers=headers)

    assert problem(response) == (422, "key-needed")


def test_a_closed_log_is_unavailable_and_nothing_is_lost(node: Node, anna: Person) -> None:
    node.log.close()

    refused = anna.post("/v1/withdraw-all", key="once-upon")

    assert problem(refused) == (503, "log-unavailable")
    assert refused.headers["retry-after"] == "5"
    with Node.open(node.config, clock=node.clock) as again:
        assert person(again, "anna").post("/v1/withdraw-all", key="once-upon").status_code == 200


def test_one_handle_cannot_ask_without_end(node: Node) -> None:
    anna = person(node, "anna", ServiceSettings(requests_per_minute=3))
    ben = Person(anna.client, issue_handle(node, "ben"))

    answers = [anna.get("/v1/me/state") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert problem(answers[3]) == (429, "too-many-requests")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 21
    assert ben.get("/v1/me/state").status_code == 200


def test_the_ladder_is_told_in_the_language_that_is_asked_for(anna: Person) -> None:
    english = anna.client.get("/v1/ladder", headers={"Accept-Language": "fr, en;q=0.5"})
    chinese = anna.client.get("/v1/ladder", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.1"})

    assert (english.headers["content-language"], english.json()["language"]) == ("en", "en")
    assert chinese.headers["content-language"] == "zh-CN"
    assert {each["purpose"] for each in english.json()["purposes"]} == set(Purpose)
    assert chinese.json()["purposes"][2]["title"] == "与您联系"
    assert english.json()["presets"]["basic"]
    separate = {each["purpose"] for each in english.json()["purposes"] if each["separate"]}
    assert not separate & set(english.json()["presets"]["advanced"])


@pytest.mark.parametrize(
    ("header", "language"),
    [("", "en"), ("de", "en"), ("zh", "zh"), ("en;q=0.1, zh;q=0.2", "zh"), ("zh;q=x, en", "en")],
)
def test_a_language_is_chosen_by_its_weight(header: str, language: str) -> None:
    assert speak(header) == language


def test_a_notice_is_told_with_its_accepted_versions(node: Node, anna: Person) -> None:
    told = anna.client.get("/v1/notices/privacy").json()
    node.register.publish_notice(
        type(NOTICE)(id="privacy", version=3, language="zh-CN", sha256="cd" * 32),
        oldest_accepted=3,
        at=node.clock(),
    )
    later = anna.client.get("/v1/notices/privacy").json()

    assert [each["version"] for each in told["versions"]] == [2]
    assert [each["language"] for each in later["versions"]] == ["zh-CN"]
    assert later["oldest_accepted"] == 3
    assert problem(anna.client.get("/v1/notices/other")) == (404, "unknown-notice")
    assert problem(anna.give("contact")) == (422, "notice-not-accepted")


def test_every_problem_has_one_slug_and_one_sentence() -> None:
    slugs = [each.slug for each in Problem]

    assert len(set(slugs)) == len(slugs)
    for each in Problem:
        assert each.sentence.endswith(".")
        assert "{" not in each.sentence


def test_many_requests_with_one_key_at_once_are_one_act(node: Node) -> None:
    anna = person(node, "anna")
    size = node.log.tree_size
    # One event loop for all, as a server has it.
    with anna.client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: anna.give("contact", key="once-upon"), range(16)))

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["log_index"] for answer in answers} == {size}
    assert node.log.tree_size == size + 1


def test_many_people_at_once_keep_their_own_states(node: Node) -> None:
    client = person(node, "anna").client
    people = [Person(client, issue_handle(node, f"p{number}")) for number in range(24)]

    def act(number: int) -> None:
        given = people[number].give("contact" if number % 2 else "recommendation")
        assert given.status_code == 200
        assert people[number].get("/v1/me/state").status_code == 200

    with client, ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(24)))

    for number, each in enumerate(people):
        permitted = [name for name, line in each.state().items() if line["permitted"]]
        assert permitted == ["contact" if number % 2 else "recommendation"]
    node.register.verify_replay()
