import dataclasses
import math
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysqlite3 import dbapi2 as sqlite3

from privacy import (
    Accounting,
    Budget,
    BudgetExhausted,
    EventKind,
    GaussianRelease,
    LaplaceRelease,
    Ledger,
    LedgerError,
    ReleaseKey,
    Replayed,
    SampledGaussianRelease,
    compose,
    epsilon_of,
    mu_for,
)

BUDGET = Budget(epsilon=3.0, delta=1e-5)
BUDGETS = {"churn": BUDGET, "recommendation": Budget(epsilon=1.0, delta=1e-6)}
DIGEST = bytes(range(32))
SMALL = GaussianRelease(sensitivity=100, noise_std=1000.0, slack_delta=1e-12)


def key(number: int, *, run: str = "june") -> ReleaseKey:
    return ReleaseKey(run=run, round=number, attempt=0)


def reserve(ledger: Ledger, number: int, release: GaussianRelease = SMALL) -> None:
    ledger.reserve(key(number), purpose="churn", release=release, request_digest=DIGEST)


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for trigger in ("event_update", "event_delete", "reply_update", "reply_delete"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.create(path, BUDGETS) as ledger:
        yield ledger


def test_a_new_ledger_has_spent_nothing_and_belongs_to_its_owner(
    ledger: Ledger, path: Path
) -> None:
    spent, left = ledger.spent("churn"), ledger.remaining("churn")

    assert (spent.epsilon, spent.delta, spent.releases) == (0.0, 1e-5, 0)
    assert (left.epsilon, left.mu) == (3.0, mu_for(BUDGET))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} <= {
        "ledger.db",
        "ledger.db-wal",
        "ledger.db-shm",
    }


def test_a_reservation_counts_from_the_moment_it_is_made(ledger: Ledger) -> None:
    reserve(ledger, 1)

    assert ledger.spent("churn").epsilon == epsilon_of(SMALL.mu, delta=1e-5, slack_delta=1e-12)
    assert ledger.spent("churn").releases == 1
    assert ledger.spent("recommendation").releases == 0
    assert ledger.remaining("churn").mu < mu_for(BUDGET)


def test_a_release_past_the_budget_is_refused_and_leaves_no_trace(ledger: Ledger) -> None:
    reserve(ledger, 1)
    before = ledger.head

    with pytest.raises(BudgetExhausted) as refusal:
        reserve(ledger, 2, GaussianRelease(sensitivity=100, noise_std=60.0))

    assert refusal.value.budget == BUDGET
    assert refusal.value.spent == ledger.spent("churn").epsilon
    assert refusal.value.after > 3.0
    assert ledger.head == before


def test_what_remains_can_be_spent_to_the_end_and_then_nothing_can(ledger: Ledger) -> None:
    reserve(ledger, 1)
    left = ledger.remaining("churn").mu
    last = GaussianRelease(sensitivity=100, noise_std=math.hypot(100 / left, 3) * (1 + 1e-9))

    reserve(ledger, 2, last)

    assert 2.9999 < ledger.spent("churn").epsilon <= 3.0
    with pytest.raises(BudgetExhausted):
        reserve(ledger, 3, GaussianRelease(sensitivity=1, noise_std=1000.0))


def test_an_exhausted_budget_has_nothing_remaining(ledger: Ledger) -> None:
    reserve(ledger, 1, GaussianRelease(sensitivity=1, noise_std=1e6, slack_delta=1e-5 / 25))

    assert ledger.remaining("churn").mu > 0
    assert ledger.remaining("recommendation").epsilon == 1.0


def test_the_same_request_is_charged_once(ledger: Ledger) -> None:
    first = ledger.reserve(key(1), purpose="churn", release=SMALL, request_digest=DIGEST)
    ledger.settle_down(key(1), GaussianRelease(sensitivity=50, noise_std=1000.0))

    again = ledger.reserve(key(1), purpose="churn", release=SMALL, request_digest=DIGEST)

    assert again == first
    assert ledger.spent("churn").releases == 1


@pytest.mark.parametrize(
    ("purpose", "release", "digest"),
    [
        ("churn", SMALL, bytes(32)),
        ("recommendation", SMALL, DIGEST),
        ("churn", GaussianRelease(sensitivity=1, noise_std=1000.0), DIGEST),
    ],
)
def test_a_key_is_not_reserved_again_for_something_else(
    ledger: Ledger, purpose: str, release: GaussianRelease, digest: bytes
) -> None:
    reserve(ledger, 1)

    with pytest.raises(
        Replayed, match="run june round 1 attempt 0 was reserved for another request"
    ):
        ledger.reserve(key(1), purpose=purpose, release=release, request_digest=digest)


def test_a_purpose_without_a_budget_releases_nothing(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="purpose coupons has no budget; nothing was released"):
        ledger.reserve(key(1), purpose="coupons", release=SMALL, request_digest=DIGEST)


def test_a_retry_gets_the_same_bytes_again(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    assert ledger.reply(key(1)) is None

    ledger.commit(key(1), b"noised")
    ledger.commit(key(1), b"noised")

    assert ledger.reply(key(1)) == b"noised"
    ledger.close()
    with Ledger.open(path, BUDGETS) as reopened:
        assert reopened.reply(key(1)) == b"noised"
    assert [event.kind for event in reopened_history(path)] == [
        EventKind.BUDGET,
        EventKind.BUDGET,
        EventKind.RESERVED,
        EventKind.RELEASED,
    ]


def reopened_history(path: Path) -> list[object]:
    with Ledger.open(path, BUDGETS) as ledger:
        return list(ledger.history())


def test_a_round_is_not_answered_twice_with_different_bytes(ledger: Ledger) -> None:
    reserve(ledger, 1)
    ledger.commit(key(1), b"noised")

    with pytest.raises(Replayed, match="was answered with other bytes; nothing was released"):
        ledger.commit(key(1), b"noised again")


def test_nothing_is_committed_or_settled_without_a_reservation(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="nothing is reserved for run june round 1 attempt 0"):
        ledger.commit(key(1), b"noised")
    with pytest.raises(LedgerError, match="nothing is reserved for run june round 2 attempt 0"):
        ledger.settle_down(key(2), SMALL)


def test_a_reservation_is_settled_downwards_only_and_only_before_its_release(
    ledger: Ledger,
) -> None:
    reserve(ledger, 1)
    smaller = GaussianRelease(sensitivity=10, noise_std=1000.0)
    ledger.settle_down(key(1), smaller)

    with pytest.raises(LedgerError, match="can only be settled downwards, to a release"):
        ledger.settle_down(key(1), SMALL)
    assert ledger.spent("churn").epsilon == epsilon_of(smaller.mu, delta=1e-5)
    ledger.commit(key(1), b"noised")
    with pytest.raises(LedgerError, match="was released already and cannot be settled"):
        ledger.settle_down(key(1), smaller)


def test_history_holds_releases_and_never_epsilons(ledger: Ledger) -> None:
    reserve(ledger, 1)

    event = ledger.history()[-1]

    assert (event.kind, event.purpose, event.key) == (EventKind.RESERVED, "churn", key(1))
    assert event.release == SMALL
    assert event.digest == DIGEST.hex()
    assert "epsilon" not in event.format()


def test_an_older_copy_put_back_lacks_the_newer_head(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    old_head = ledger.head
    ledger.close()
    backup = path.read_bytes()
    with Ledger.open(path, BUDGETS) as ledger_now:
        reserve(ledger_now, 2)
        new_head = ledger_now.head

    assert reopened_heads(path, old_head, new_head) == (True, True)
    path.write_bytes(backup)
    assert reopened_heads(path, old_head, new_head) == (True, False)


def reopened_heads(path: Path, *heads: str) -> tuple[bool, ...]:
    with Ledger.open(path, {}) as ledger:
        return tuple(ledger.contains_head(head) for head in heads)


def test_two_connections_see_each_others_charges(ledger: Ledger, path: Path) -> None:
    with Ledger.open(path, BUDGETS) as other:
        reserve(other, 1)
        reserve(ledger, 2)

        assert ledger.spent("churn") == other.spent("churn")
        assert ledger.head == other.head
        assert other.spent("churn").releases == 2


def test_budgets_are_kept_and_a_new_purpose_is_recorded(ledger: Ledger, path: Path) -> None:
    with Ledger.open(path, {"coupons": BUDGET}) as other:
        assert other.budgets() == BUDGETS | {"coupons": BUDGET}
    assert ledger.budgets() == BUDGETS | {"coupons": BUDGET}


def test_another_budget_for_a_known_purpose_is_refused(ledger: Ledger, path: Path) -> None:
    with pytest.raises(
        LedgerError, match="churn is recorded as epsilon 3 and delta 1e-05, not 4 and 1e-05"
    ):
        Ledger.open(path, {"churn": Budget(epsilon=4.0, delta=1e-5)})


def test_creating_refuses_to_start_from_nothing_or_over_something(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    head = ledger.head

    with pytest.raises(LedgerError, match="a ledger needs at least one budget"):
        Ledger.create(tmp_path / "other.db", {})
    with pytest.raises(LedgerError, match=r"something is at .*ledger\.db already; it was left"):
        Ledger.create(path, BUDGETS)
    with pytest.raises(LedgerError, match=r"no ledger could be created at .*no/ledger\.db"):
        Ledger.create(tmp_path / "no" / "ledger.db", BUDGETS)
    assert ledger.head == head
    assert not any(file.name.startswith(".") for file in tmp_path.iterdir())


def test_opening_refuses_what_is_not_a_ledger(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE shoes (size INTEGER)")
    connection.close()
    text = tmp_path / "text.db"
    text.write_text("not a database " * 100)
    (tmp_path / "empty.db").touch()

    with pytest.raises(LedgerError, match=r"there is no ledger at .*missing\.db"):
        Ledger.open(tmp_path / "missing.db", BUDGETS)
    with pytest.raises(LedgerError, match=r"the file .*other\.db is not a ledger"):
        Ledger.open(other, BUDGETS)
    with pytest.raises(LedgerError, match=r"the file .*empty\.db is not a ledger"):
        Ledger.open(tmp_path / "empty.db", BUDGETS)
    with pytest.raises(LedgerError, match="cannot be used: file is not a database; nothing may"):
        Ledger.open(text, BUDGETS)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_a_truncated_file_is_refused(ledger: Ledger, path: Path, share: float) -> None:
    for number in range(30):
        reserve(ledger, number, GaussianRelease(sensitivity=1, noise_std=1000.0))
        ledger.commit(key(number), bytes(1000))
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(LedgerError):
        Ledger.open(path, BUDGETS)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE event SET body = replace(body, 'churn', 'chrun') WHERE seq = 3",
            "event 3 does not continue the hash chain",
        ),
        ("DELETE FROM event WHERE seq = 2", "has no event 2"),
        ("DELETE FROM event", "has no events"),
    ],
)
def test_an_edited_chain_is_refused(
    ledger: Ledger, path: Path, statement: str, message: str
) -> None:
    reserve(ledger, 1)
    ledger.close()
    tamper(path, statement)

    with pytest.raises(LedgerError, match=message):
        Ledger.open(path, BUDGETS)


def test_losing_events_while_open_is_noticed(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    tamper(path, "DELETE FROM event WHERE seq = 3")

    with pytest.raises(LedgerError, match="lost events while it was open"):
        reserve(ledger, 2)


def test_a_damaged_reply_is_not_sent(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    ledger.commit(key(1), b"noised")
    tamper(path, "UPDATE reply SET bytes = x'00'")

    with pytest.raises(LedgerError, match=r"the stored reply for run june .* is damaged"):
        ledger.reply(key(1))


@pytest.mark.parametrize("table", ["event", "reply"])
def test_the_file_itself_refuses_changes(ledger: Ledger, path: Path, table: str) -> None:
    reserve(ledger, 1)
    ledger.commit(key(1), b"noised")
    connection = sqlite3.connect(path)

    with pytest.raises(sqlite3.IntegrityError, match="a ledger is append-only"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
    connection.close()


def test_a_digest_has_32_bytes(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="request_digest must have 32 bytes, got 3"):
        ledger.reserve(key(1), purpose="churn", release=SMALL, request_digest=b"abc")


steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "commit", "reopen"]),
        st.integers(0, 3),
        st.sampled_from([40.0, 60.0, 90.0, 300.0]),
        st.integers(0, 1),
    ),
    max_size=12,
)


@given(steps)
@settings(max_examples=60)
def test_any_history_agrees_with_a_naive_count(
    history: list[tuple[str, int, float, int]],
) -> None:
    reserved: dict[int, tuple[GaussianRelease, bytes]] = {}
    costs: dict[int, GaussianRelease] = {}
    replies: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        ledger = Ledger.create(path, BUDGETS)
        for step, number, noise_std, byte in history:
            release = GaussianRelease(sensitivity=20, noise_std=noise_std)
            digest, reply = bytes([byte]) * 32, bytes([byte])
            heads = ledger.head
            try:
                if step == "reserve":
                    ledger.reserve(
                        key(number), purpose="churn", release=release, request_digest=digest
                    )
                    after = compose((costs | {number: release}).values())
                    fits = epsilon_of(after.mu, delta=1e-5) <= 3.0
                    assert reserved.get(number, (release, digest)) == (release, digest)
                    assert number in reserved or fits
                    reserved.setdefault(number, (release, digest))
                    costs.setdefault(number, release)
                elif step == "settle":
                    ledger.settle_down(key(number), release)
                    assert number not in replies
                    assert release.mu <= costs[number].mu
                    costs[number] = release
                elif step == "commit":
                    ledger.commit(key(number), reply)
                    assert number in reserved
                    assert replies.setdefault(number, reply) == reply
                else:
                    ledger.close()
                    ledger = Ledger.open(path, BUDGETS)
            except BudgetExhausted:
                after = compose((costs | {number: release}).values())
                assert number not in reserved
                assert epsilon_of(after.mu, delta=1e-5) > 3.0
                assert ledger.head == heads
            except Replayed:
                assert number in (reserved if step == "reserve" else replies)
                assert ledger.head == heads
            except LedgerError:
                assert step in ("settle", "commit")
                assert ledger.head == heads
            spent = ledger.spent("churn")
            assert spent.epsilon == epsilon_of(compose(costs.values()).mu, delta=1e-5)
            assert spent.epsilon <= 3.0
            assert spent.releases == len(costs)
            assert all(ledger.reply(key(n)) == replies.get(n) for n in range(4))
        ledger.close()


def test_a_reader_sees_the_ledger_and_records_nothing(ledger: Ledger, path: Path) -> None:
    ledger.reserve(key(1), purpose="churn", release=SMALL, request_digest=bytes(32))
    events = len(ledger.history())
    with Ledger.open_readonly(path) as reader:
        assert reader.spent("churn") == ledger.spent("churn")
        assert reader.budgets() == ledger.budgets()
        with pytest.raises(LedgerError, match="readonly"):
            reader.reserve(key(2), purpose="churn", release=SMALL, request_digest=bytes(32))
        ledger.reserve(key(3), purpose="churn", release=SMALL, request_digest=bytes(32))

        assert len(reader.history()) == events + 1


def test_only_a_signed_act_begins_a_new_window_and_it_does_so_once(
    ledger: Ledger, path: Path
) -> None:
    budget = ledger.budgets()["churn"]
    ledger.reserve(key(1), purpose="churn", release=SMALL, request_digest=bytes(32))
    before = ledger.spent("churn")
    for _ in range(2):
        ledger.renew("churn", budget, act=b"a" * 32)
    assert (ledger.spent("churn").releases, ledger.spent_ever("churn")) == (0, before)
    ledger.reserve(key(2), purpose="churn", release=SMALL, request_digest=bytes(32))
    # What was reserved before the renewal is settled in its own window.
    ledger.settle_down(key(1), GaussianRelease(sensitivity=1, noise_std=1e6))

    with Ledger.open(path, ledger.budgets()) as again:
        assert again.spent("churn") == before
        ever = again.spent_ever("churn")
        assert (ever.releases, ever.epsilon > before.epsilon) == (2, True)
    with pytest.raises(Replayed, match="renewed another budget before; nothing was renewed"):
        ledger.renew("churn", Budget(epsilon=9, delta=1e-5), act=b"a" * 32)
    with pytest.raises(LedgerError, match="has no budget"):
        ledger.renew("nothing", budget, act=b"b" * 32)
    with pytest.raises(ValueError, match="act must have 32 bytes, got 3"):
        ledger.renew("churn", budget, act=b"abc")


def test_the_accounting_of_a_purpose_is_kept_for_good(tmp_path: Path) -> None:
    path, budgets = tmp_path / "mixed.sqlite", {"churn": Budget(epsilon=3, delta=1e-6)}
    steps = SampledGaussianRelease(sensitivity=100, noise_std=110, sampling_rate=0.01, steps=500)
    counts = LaplaceRelease(sensitivity=1, scale=20)
    with Ledger.create(path, budgets, accounting={"churn": Accounting.ADAPTIVE}) as ledger:
        ledger.reserve(key(1), purpose="churn", release=steps, request_digest=bytes(32))
        ledger.reserve(key(2), purpose="churn", release=counts, request_digest=bytes(32))
        ledger.settle_down(key(1), dataclasses.replace(steps, steps=200))
        with pytest.raises(LedgerError, match="can only be settled downwards"):
            ledger.settle_down(key(1), dataclasses.replace(steps, steps=201))
        with pytest.raises(LedgerError, match="can only be settled downwards"):
            ledger.settle_down(key(1), counts)
        spent = ledger.spent("churn")

    with Ledger.open(path, budgets, accounting={"churn": Accounting.ADAPTIVE}) as again:
        assert again.spent("churn") == spent
    with pytest.raises(LedgerError, match="recorded as adaptive, not gaussian"):
        Ledger.open(path, budgets)
    with pytest.raises(LedgerError, match="an accounting was given for sales, which has no"):
        Ledger.open(path, budgets, accounting={"sales": Accounting.ADAPTIVE})


def test_a_budget_for_sums_pays_for_nothing_else(ledger: Ledger) -> None:
    counts = LaplaceRelease(sensitivity=1, scale=20)

    with pytest.raises(LedgerError, match="pays for Gaussian sums only, not for a LaplaceRelease"):
        ledger.reserve(key(1), purpose="churn", release=counts, request_digest=bytes(32))
    with pytest.raises(ValueError, match="this budget does not pay for a LaplaceRelease"):
        ledger.affordable("churn", counts)
    assert ledger.spent("churn").releases == 0
