import dataclasses
import ipaddress
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent import Identity, NoticeError, Purpose, SignedMessage, WithdrawalNotice
from consent.reader import ReadOnlyDatabase
from consent.withdrawal import ACK, NOTICE
from participant.config import format_config
from participant.handle import issue_handle
from participant.node import Node, NodeError, system_clock
from participant.partners import HandleMode, PropagationSettings
from participant.propagating import (
    NOTIFY_PATH,
    Courier,
    Inbox,
    format_signed,
    health,
    parse_signed,
)
from participant.service import create_app
from tests.federation.synthetic import DAY_MS, Clock, config_of, events, kinds

from .service_client import client_of, person, served
from .spreading import (
    LOOKALIKE,
    SHARING,
    Answer,
    Line,
    agree_to,
    created,
    is_permitted,
    line,
    open_with,
    recipient,
    share,
    signed_body,
)

HOUR_MS = 3_600_000


@dataclasses.dataclass
class Pair:
    """Amber gave birch data about people; birch is at the end of a line."""

    amber: Node
    birch: Node
    line: Line
    clock: Clock
    courier: Courier

    def told(self) -> Counter[object]:
        """How often birch wrote each notice down."""
        return Counter(
            event["notice"]
            for event in events(self.birch)
            if event["type"] == "withdrawal.received"
        )

    def acked(self) -> Counter[object]:
        """How often amber closed each notice."""
        return Counter(
            event["notice"] for event in events(self.amber) if event["type"] == "propagation.acked"
        )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with make_pair(tmp_path) as made:
        yield made


@contextmanager
def make_pair(folder: Path) -> Iterator[Pair]:
    clock = Clock()
    with line() as wire:
        amber, birch = (created(name, folder, clock=clock) for name in ("amber", "birch"))
        amber = open_with(amber, recipients=(recipient(birch.identity.public, wire.url),))
        wire.node = birch = open_with(birch, senders=(amber.identity.public,))
        made = Pair(amber, birch, wire, clock, Courier(amber, timeout_s=5.0))
        agree_to(amber, "anna", "ben")
        agree_to(birch, "B-1", "B-2")
        share(amber, birch, "anna", known_as="B-1")
        share(amber, birch, "ben", known_as="B-2")
        yield made
    made.amber.close()
    made.birch.close()


def test_a_withdrawal_at_one_brand_counts_at_the_other(pair: Pair) -> None:
    pair.amber.withdraw("anna", [SHARING])

    trip = pair.courier.deliver()

    assert (trip.acked, trip.failed, trip.raised) == (1, 0, ())
    assert not is_permitted(pair.birch, "B-1")
    assert is_permitted(pair.birch, "B-2")
    assert kinds(pair.amber)[-3:] == [
        "propagation.queued",
        "propagation.sent",
        "propagation.acked",
    ]
    assert pair.told() == pair.acked()
    assert pair.amber.overdue_notices() == []
    pair.amber.outbox.verify()
    pair.birch.register.verify_replay()


def test_a_withdrawal_over_the_api_is_told_on_too(pair: Pair) -> None:
    anna = person(pair.amber, "anna")

    assert anna.post("/v1/withdraw-all").status_code == 200
    assert anna.post("/v1/objections", {"set": True}).status_code == 200
    assert anna.post("/v1/restrictions", {"set": True}).status_code == 200
    assert anna.give(refused=[str(SHARING)]).status_code == 200
    assert anna.post("/v1/objections", {"set": False}).status_code == 200
    assert pair.courier.deliver().acked == 4
    assert not is_permitted(pair.birch, "B-1")


def test_nothing_that_travels_or_is_logged_names_the_person(pair: Pair) -> None:
    pair.amber.withdraw("anna")
    pair.courier.deliver()

    ref = pair.amber.register.subject_ref("anna")
    leaves = b"".join(
        entry.leaf for node in (pair.amber, pair.birch) for entry in node.log.entries()
    )
    handle = pair.amber.share_handle("birch", "anna")
    for secret in (b"anna", ref.encode(), handle.encode()):
        assert secret not in leaves
    assert b"anna" not in b"".join(pair.line.seen)
    assert ref.encode() not in b"".join(pair.line.seen)


def test_somebody_of_whom_the_recipient_got_nothing_is_not_told_of(pair: Pair) -> None:
    pair.amber.withdraw("zoe")

    assert pair.amber.outbox.due(at=pair.clock()) == []


def test_a_recipient_of_sums_is_never_told_that_somebody_withdrew(tmp_path: Path) -> None:
    key = Identity.generate("hub").public
    node = open_with(
        created("amber", tmp_path),
        recipients=(recipient(key, "", SHARING, handle=HandleMode.NONE),),
    )
    with node, pytest.raises(NodeError, match="hub is no recipient of amber that knows single"):
        node.share_handle("hub", "anna")
    with open_with(node, recipients=tuple(node.config.spreading.recipients.values())) as node:
        node.withdraw("anna")

        assert not [kind for kind in kinds(node) if kind.startswith("propagation.")]


def test_what_needs_a_purpose_falls_with_it(tmp_path: Path) -> None:
    key = Identity.generate("birch").public
    with open_with(
        created("amber", tmp_path),
        recipients=(recipient(key, "https://birch.example", LOOKALIKE),),
    ) as node:
        node.share_handle("birch", "anna")
        node.withdraw("anna", [Purpose.FEDERATED_TRAINING])

        (delivery,) = node.outbox.due(at=node.clock())
        assert WithdrawalNotice.parse(delivery.signed.message).purposes == {LOOKALIKE}


def test_a_line_that_is_down_delays_and_loses_nothing(pair: Pair) -> None:
    pair.line.node = None
    pair.amber.withdraw("anna")
    pair.amber.withdraw("ben")
    first = pair.courier.deliver()
    at_once = pair.courier.deliver()
    pair.clock.now += 60_000
    pair.line.node = pair.birch

    # The second notice is not tried while the first one waits to try again.
    assert (first.acked, first.failed, at_once.failed) == (0, 1, 0)
    assert pair.courier.deliver().acked == 2
    assert set(pair.acked().values()) == set(pair.told().values()) == {1}


def test_a_notice_that_nobody_acknowledges_raises_one_alarm(pair: Pair) -> None:
    pair.line.node = None
    pair.amber.withdraw("anna")
    pair.courier.deliver()
    pair.clock.now += 24 * HOUR_MS
    raised = [len(pair.courier.deliver().raised) for _ in range(2)]

    assert raised == [1, 0]
    (late,) = pair.amber.overdue_notices()
    assert late.recipient == "birch"
    assert health(pair.amber)["overdue_notices"] == 1
    assert kinds(pair.amber).count("propagation.overdue") == 1


def lost(_answer: Answer) -> None:
    """The answer never arrives."""


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(pair: Pair) -> None:
    pair.line.change = lost
    pair.amber.withdraw("anna")
    assert pair.courier.deliver().failed == 1
    size = pair.birch.log.tree_size
    pair.line.change = lambda answer: answer
    pair.clock.now += HOUR_MS

    assert pair.courier.deliver().acked == 1
    assert pair.birch.log.tree_size == size
    assert pair.line.seen[0] == pair.line.seen[1]


def test_the_same_notice_gets_the_same_answer_for_ever(pair: Pair) -> None:
    pair.amber.withdraw("anna")
    (delivery,) = pair.amber.outbox.due(at=pair.clock())
    inbox = Inbox(pair.birch)
    first = inbox.receive(delivery.signed, key=delivery.notice_id)
    pair.clock.now += DAY_MS
    pair.birch = open_with(pair.birch, senders=(pair.amber.identity.public,))

    assert Inbox(pair.birch).receive(delivery.signed, key=delivery.notice_id) == first
    assert pair.told() == {delivery.notice_id: 1}


def test_acknowledgements_that_come_in_another_order_close_their_own_notices(pair: Pair) -> None:
    answers: list[Answer] = []

    def held(answer: Answer) -> Answer:
        answers.append(answer)
        # The first notice gets the answer to the second one, and the other way round.
        return answers[0] if len(answers) > 1 else (202, b"{}")

    pair.line.change = held
    pair.amber.withdraw("anna")
    pair.amber.withdraw("ben")
    first = pair.courier.deliver()
    one_left = len(pair.amber.outbox.due(at=pair.clock() + DAY_MS))
    pair.line.change = lambda answer: answer
    pair.clock.now += HOUR_MS

    assert (first.acked, first.failed, one_left) == (1, 1, 1)
    assert pair.courier.deliver().acked == 1
    assert set(pair.acked().values()) == {1}
    assert len(pair.acked()) == 2


STRANGER = Identity.generate("birch")


def forged(answer: Answer) -> Answer:
    """An acknowledgement that says the right words under another key."""
    said = signed_body(answer)
    again = SignedMessage(said["message"].encode(), STRANGER.sign(ACK, said["message"].encode()))
    return 200, httpx.Request("POST", "http://x", json=format_signed(again)).content


@pytest.mark.parametrize(
    "change",
    [
        forged,
        lambda answer: (200, b"{}"),
        lambda answer: (200, b"[" * 10_000),
        lambda answer: (200, b"\xff"),
        lambda answer: (200, b" " * 20_000 + answer[1]),
        lambda answer: (500, answer[1]),
        lambda answer: (301, answer[1]),
        lambda answer: (200, answer[1].replace(b"withdrawal.ack", b"withdrawal.nak")),
        lost,
    ],
    ids=["forged", "empty", "deep", "bytes", "long", "fault", "moved", "changed", "lost"],
)
def test_nothing_but_the_recipients_word_closes_a_notice(pair: Pair, change: object) -> None:
    pair.line.change = change  # type: ignore[assignment]
    pair.amber.withdraw("anna")

    assert pair.courier.deliver().failed == 1
    assert "propagation.acked" not in kinds(pair.amber)
    assert len(pair.amber.outbox.due(at=pair.clock() + DAY_MS)) == 1


def test_erasing_a_person_while_their_notice_waits_still_tells_the_recipient(pair: Pair) -> None:
    pair.line.node = None
    pair.amber.withdraw("anna", [SHARING])
    pair.courier.deliver()
    pair.amber.erase("anna")
    pair.clock.now += HOUR_MS
    pair.line.node = pair.birch

    assert pair.courier.deliver().acked == 2
    assert not is_permitted(pair.birch, "B-1")
    assert pair.amber.handles.of(pair.amber.register.subject_ref("anna")) == {}
    assert kinds(pair.amber).count("subject.erased") == 1
    pair.amber.outbox.verify()
    pair.amber.register.verify_replay()


def test_a_person_erased_by_the_recipient_is_nobody_and_still_acknowledged(pair: Pair) -> None:
    pair.birch.erase("B-1")
    pair.amber.withdraw("anna")

    assert pair.courier.deliver().acked == 1


def test_a_withdrawal_that_came_before_the_data_waits_for_it(pair: Pair) -> None:
    agree_to(pair.amber, "cleo")
    agree_to(pair.birch, "B-3")
    handle = pair.amber.share_handle("birch", "cleo")
    pair.amber.withdraw("cleo")
    assert pair.courier.deliver().acked == 1
    before = is_permitted(pair.birch, "B-3")
    pair.birch.learn_handle("amber", handle, "B-3")

    assert before
    assert not is_permitted(pair.birch, "B-3")


def test_a_merged_person_is_told_of_under_both_names(pair: Pair) -> None:
    pair.amber.register.merge("anna", "ben", at=pair.clock())
    pair.amber.withdraw("anna")

    assert pair.courier.deliver().acked == 1
    assert not is_permitted(pair.birch, "B-1")
    assert not is_permitted(pair.birch, "B-2")


def test_two_brands_that_tell_each_other_come_to_an_end(pair: Pair) -> None:
    amber, birch = pair.amber.identity.public, pair.birch.identity.public
    with line() as back:
        pair.amber = open_with(
            pair.amber, recipients=(recipient(birch, pair.line.url),), senders=(birch,)
        )
        pair.line.node = pair.birch = open_with(
            pair.birch, recipients=(recipient(amber, back.url),), senders=(amber,)
        )
        back.node = pair.amber
        share(pair.birch, pair.amber, "B-1", known_as="anna")
        couriers = [Courier(pair.amber), Courier(pair.birch)]
        pair.amber.withdraw("anna")
        first = [courier.deliver().acked for courier in couriers]
        # The person says it at the other brand as well.
        pair.birch.withdraw("B-1")
        size = pair.amber.log.tree_size
        second = [courier.deliver().acked for courier in couriers]

        assert (first, second) == ([1, 0], [0, 1])
        assert kinds(pair.amber, after=size) == ["withdrawal.received"]
        assert pair.amber.log.tree_size == size + 1


def write_certificate(certificate: Path, key: Path) -> None:
    """A certificate for loopback that is its own authority."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "birch")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_a_served_recipient_must_show_a_certificate_of_its_authorities(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("birch.pem", "birch.key", "other.pem", "other.key")]
    write_certificate(*files[:2])
    write_certificate(*files[2:])
    amber, birch = (created(name, tmp_path) for name in ("amber", "birch"))
    birch = open_with(birch, senders=(amber.identity.public,))
    key = birch.identity.public
    birch.close()
    acked = []
    with served(birch, "--tls-certificate", str(files[0]), "--tls-key", str(files[1])) as (url, _):
        for trusted in (None, files[2], files[0]):
            settings = dataclasses.replace(recipient(key, url), authorities=trusted)
            amber = open_with(amber, recipients=(settings,))
            amber.share_handle("birch", "anna")
            amber.withdraw("anna")
            acked.append(Courier(amber).deliver().acked)
    amber.close()

    assert url.startswith("https://")
    assert acked == [0, 0, 1]


def test_handles_are_refused_where_they_mean_nobody_or_two(pair: Pair) -> None:
    handle = pair.amber.share_handle("birch", "anna")

    assert pair.amber.share_handle("birch", "anna") == handle
    assert pair.amber.share_handle("birch", "ben") != handle
    with pytest.raises(ValueError, match="amber uses this handle for somebody else; nothing was"):
        pair.birch.learn_handle("amber", handle, "B-2")
    with pytest.raises(ValueError, match="a handle must be one word; nothing was kept"):
        pair.birch.learn_handle("amber", "two words", "B-2")
    with pytest.raises(NodeError, match="dune is no sender that birch listens to; nothing was kep"):
        pair.birch.learn_handle("dune", handle, "B-2")


def post(node: Node, signed: SignedMessage, key: str) -> tuple[int, str]:
    response = client_of(create_app(node)).post(
        NOTIFY_PATH, json=format_signed(signed), headers={"Idempotency-Key": key}
    )
    return response.status_code, response.json().get("type", "").removeprefix("/problems/")


def test_a_notice_that_is_not_what_it_must_be_is_refused_and_changes_nothing(pair: Pair) -> None:
    pair.amber.withdraw("anna")
    (delivery,) = pair.amber.outbox.due(at=pair.clock())
    size, signed, key = pair.birch.log.tree_size, delivery.signed, delivery.notice_id
    notice = WithdrawalNotice.parse(signed.message)
    stranger = Identity.generate("amber")

    def made(by: Identity, **changes: object) -> SignedMessage:
        message = dataclasses.replace(notice, **changes).format()  # type: ignore[arg-type]
        return SignedMessage(message, by.sign(NOTICE, message))

    amber = pair.amber.identity
    assert post(pair.birch, made(stranger), key) == (403, "not-signed-by-sender")
    assert post(pair.birch, made(amber, recipient="dune"), key) == (403, "not-signed-by-sender")
    assert post(pair.birch, made(amber, sender="dune"), key) == (403, "unknown-sender")
    assert post(pair.birch, SignedMessage(b"{}", signed.signature), key) == (400, "malformed")
    assert post(pair.birch, signed, "another-key") == (422, "invalid")
    assert post(pair.amber, signed, key) == (403, "unknown-sender")
    assert pair.birch.log.tree_size == size
    assert is_permitted(pair.birch, "B-1")
    assert post(pair.birch, signed, key) == (200, "")
    assert post(pair.birch, made(amber, handle="other"), key) == (409, "key-reused")
    body = {"message": "x", "signature": "!"}
    headers = {"Idempotency-Key": "12345678"}
    answer = client_of(create_app(pair.birch)).post(NOTIFY_PATH, json=body, headers=headers)
    assert answer.status_code == 400


def test_a_log_that_cannot_be_written_acknowledges_nothing(pair: Pair) -> None:
    pair.amber.withdraw("anna")
    pair.birch.log.close()

    assert pair.courier.deliver().failed == 1
    assert "propagation.acked" not in kinds(pair.amber)


def test_a_recipient_that_left_the_file_keeps_its_notices_open(pair: Pair) -> None:
    pair.amber.withdraw("anna")
    pair.amber = open_with(pair.amber)
    courier = Courier(pair.amber)

    assert courier.deliver().failed == 1
    assert pair.line.seen == []


@given(st.binary(max_size=60), st.binary(max_size=64))
def test_a_signed_message_is_read_back_or_refused(text: bytes, signature: bytes) -> None:
    signed = SignedMessage(text.decode(errors="replace").encode(), signature)

    assert parse_signed(format_signed(signed)) == signed


@pytest.mark.parametrize(
    "value", [None, [], {}, {"message": "x"}, {"message": "x", "signature": "?"}, "text"]
)
def test_what_is_no_signed_message_is_refused(value: object) -> None:
    with pytest.raises(NoticeError, match="a signed message"):
        parse_signed(value)


FAULTS = {
    "down": lambda line: setattr(line, "before", lambda: False),
    "lost": lambda line: setattr(line, "change", lost),
    "forged": lambda line: setattr(line, "change", forged),
    "fault": lambda line: setattr(line, "change", lambda answer: (500, answer[1])),
    "up": lambda line: None,
}
steps = st.lists(
    st.one_of(
        st.sampled_from(["anna", "ben"]).map(lambda name: ("withdraw", name)),
        st.sampled_from(sorted(FAULTS)).map(lambda name: ("deliver", name)),
        st.sampled_from(["amber", "birch"]).map(lambda name: ("restart", name)),
    ),
    max_size=10,
)


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_each_withdrawal_is_acknowledged_exactly_once_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    with make_pair(tmp_path_factory.mktemp("pair")) as pair:
        withdrawn = 0
        for step, name in steps:
            pair.clock.now += 7 * 60_000
            if step == "withdraw":
                pair.amber.withdraw(name)
                withdrawn += 1
            elif step == "deliver":
                FAULTS[name](pair.line)
                pair.courier.deliver()
                pair.line.before, pair.line.change = lambda: True, lambda answer: answer
            elif name == "amber":
                recipients = tuple(pair.amber.config.spreading.recipients.values())
                pair.amber = open_with(pair.amber, recipients=recipients)
                pair.courier = Courier(pair.amber)
            else:
                pair.birch = open_with(pair.birch, senders=(pair.amber.identity.public,))
                pair.line.node = pair.birch
        pair.clock.now += 2 * HOUR_MS
        pair.courier.deliver()

        assert pair.amber.outbox.due(at=pair.clock() + DAY_MS) == []
        assert len(pair.acked()) == withdrawn
        assert set(pair.acked().values()) <= {1}
        assert pair.told() == pair.acked()
        for ours, theirs in (("anna", "B-1"), ("ben", "B-2")):
            left = ("withdraw", ours) in steps
            assert is_permitted(pair.birch, theirs) is not left
        pair.amber.outbox.verify()


def test_a_served_node_tells_a_served_node_by_itself(tmp_path: Path) -> None:
    amber, birch = (created(name, tmp_path) for name in ("amber", "birch"))
    birch = open_with(birch, senders=(amber.identity.public,))
    agree_to(birch, "B-1")
    agree_to(amber, "anna")
    key = birch.identity.public
    birch.close()
    with served(birch) as (birch_url, _):
        quick = PropagationSettings(first_pause_s=1, most_pause_s=1)
        amber = open_with(amber, recipients=(recipient(key, birch_url),), propagation=quick)
        handle = amber.share_handle("birch", "anna")
        credentials = {"Authorization": f"Bearer {issue_handle(amber, 'anna')}"}
        amber.close()
        with served(amber) as (amber_url, _):
            headers = {**credentials, "Idempotency-Key": "once-upon"}
            answer = httpx.post(f"{amber_url}/v1/withdraw-all", headers=headers, trust_env=False)
            assert answer.status_code == 200
            until = time.monotonic() + 30
            while time.monotonic() < until:
                log = httpx.get(f"{amber_url}/log/entries?start=0&end=200", trust_env=False).text
                if "propagation.acked" in log:
                    break
                time.sleep(0.1)

    with Node.open(amber.config) as amber, Node.open(birch.config) as birch:
        assert kinds(amber).count("propagation.acked") == 1
        birch.learn_handle("amber", handle, "B-1")
        assert not is_permitted(birch, "B-1")


def test_a_courier_that_is_killed_at_any_moment_tells_everybody_once(tmp_path: Path) -> None:
    moments = random.Random(5)  # noqa: S311
    people = [f"c{number}" for number in range(25)]
    amber, birch = (created(name, tmp_path) for name in ("amber", "birch"))
    birch = open_with(birch, senders=(amber.identity.public,))
    key = birch.identity.public
    birch.close()
    with served(birch) as (url, _):
        amber = open_with(amber, recipients=(recipient(key, url),))
        for name in people:
            amber.share_handle("birch", name)
            amber.withdraw(name)
        amber.close()
        kills = 0
        for _ in range(40):
            # Now after one acknowledgement, now after several, however fast the machine is.
            if not killed_after(amber, acks=moments.randint(1, 4)):
                break
            kills += 1
        finish(amber)

    with Node.open(amber.config) as amber, Node.open(birch.config) as birch:
        acked = [e["notice"] for e in events(amber) if e["type"] == "propagation.acked"]
        told = [e["notice"] for e in events(birch) if e["type"] == "withdrawal.received"]
        assert kills >= 3
        assert len(acked) == len(people)
        assert sorted(set(acked)) == sorted(acked) == sorted(told)
        amber.outbox.verify()


def finish(node: Node) -> None:
    with Node.open(node.config) as opened:
        while opened.outbox.due(at=system_clock()):
            Courier(opened).deliver()


def killed_after(node: Node, *, acks: int) -> bool:
    """Deliver in a child process and kill it after so many; False if it had finished by then."""
    database = ReadOnlyDatabase(node.config.folder / "log")

    def acked() -> int:
        with database.reading() as connection:
            question = "SELECT COUNT(*) FROM outbox WHERE acked_at IS NOT NULL"
            return int(connection.execute(question).fetchone()[0])

    until, status = acked() + acks, 0
    child = os.fork()
    if not child:
        try:
            finish(node)
        except BaseException as error:  # noqa: BLE001 - a forked test must never come back
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    ended = 0
    while acked() < until and not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    database.close()
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def test_the_configuration_of_these_nodes_is_read_back(pair: Pair) -> None:
    assert '[recipients."birch"]' in format_config(pair.amber.config)
    assert config_of("amber", Path("x")).spreading != pair.amber.config.spreading
