"""The ledger under real processes that die, race, and run out of disk."""

import itertools
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

import privacy.ledger
from privacy import (
    Budget,
    BudgetExhausted,
    EventKind,
    GaussianRelease,
    Ledger,
    LedgerError,
    ReleaseKey,
)

BUDGETS = {"churn": Budget(epsilon=3.0, delta=1e-5)}
DIGEST = bytes(32)
# Eighteen of these fit the budget: 18 / 6^2 < 0.719^2 < 19 / 6^2.
RELEASE = GaussianRelease(sensitivity=100, noise_std=600.0)


def key(number: int) -> ReleaseKey:
    return ReleaseKey(run="june", round=number, attempt=0)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a real child process and give its id; exit status 0 when it returns."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - a forked test must never come back
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def scenario(path: Path, acknowledge: Callable[[bytes], None]) -> None:
    """One node's evening, from an empty folder to two answered rounds."""
    ledger = Ledger.open(path, BUDGETS) if path.exists() else Ledger.create(path, BUDGETS)
    for number in (1, 2):
        ledger.reserve(key(number), purpose="churn", release=RELEASE, request_digest=DIGEST)
        acknowledge(b"r")
        if ledger.reply(key(number)) is None:
            ledger.commit(key(number), b"noised")
        acknowledge(b"c")
    ledger.close()


def kill_before_line(number: int) -> None:
    """Send this process SIGKILL before the given line that runs in the ledger."""
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if frame.f_code.co_filename != privacy.ledger.__file__:
            return None
        if event == "line" and next(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def counts(path: Path) -> tuple[int, int]:
    with Ledger.open(path, BUDGETS) as ledger:
        kinds = [event.kind for event in ledger.history()]
        assert ledger.spent("churn").epsilon <= 3.0
    return kinds.count(EventKind.RESERVED), kinds.count(EventKind.RELEASED)


def test_a_process_killed_before_any_line_of_the_ledger_loses_no_charge(tmp_path: Path) -> None:
    for number in itertools.count(1):
        path = tmp_path / str(number) / "ledger.db"
        path.parent.mkdir()
        reading, writing = os.pipe()

        def work(line: int = number, path: Path = path, out: int = writing) -> None:
            kill_before_line(line)
            scenario(path, lambda letter: os.write(out, letter) and None)

        _, status = os.waitpid(fork(work), 0)
        os.close(writing)
        acknowledged = os.read(reading, 100)
        os.close(reading)
        if path.exists():
            reserved, released = counts(path)
            assert reserved >= acknowledged.count(b"r")
            assert acknowledged.count(b"c") <= released <= reserved
        else:
            assert acknowledged == b""
        scenario(path, lambda _: None)
        assert counts(path) == (2, 2)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert number > 100


def spend(path: Path, out: int) -> None:
    """Reserve and commit until the budget says no, telling of each as it returns."""
    ledger = Ledger.open(path, BUDGETS)
    for number in itertools.count():
        ledger.reserve(key(number), purpose="churn", release=RELEASE, request_digest=DIGEST)
        os.write(out, b"r")
        ledger.commit(key(number), os.urandom(50))
        os.write(out, b"c")


def test_a_process_killed_at_any_moment_is_charged_for_all_it_released(tmp_path: Path) -> None:
    moments = random.Random(7)  # noqa: S311
    stopped = []
    for number in range(60):
        path = tmp_path / f"{number}.db"
        Ledger.create(path, BUDGETS).close()
        reading, writing = os.pipe()
        child = fork(lambda path=path, out=writing: spend(path, out))
        # Killed somewhere after a number of acknowledgements, however fast the machine is.
        acknowledged = b""
        for _ in range(moments.randrange(36)):
            acknowledged += os.read(reading, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writing)
        acknowledged += os.read(reading, 1000)
        os.close(reading)

        reserved, released = counts(path)

        assert acknowledged.count(b"r") <= reserved <= 18
        assert acknowledged.count(b"c") <= released <= reserved
        stopped.append(reserved)
    assert stopped.count(18) < 50
    assert len(set(stopped)) > 5


def race(path: Path, *, start: int, number: int, release: GaussianRelease) -> None:
    ledger = Ledger.open(path, BUDGETS)
    os.read(start, 1)
    try:
        ledger.reserve(key(number), purpose="churn", release=release, request_digest=DIGEST)
    except BudgetExhausted:
        os._exit(3)


def test_of_two_processes_racing_for_the_last_slice_one_wins(tmp_path: Path) -> None:
    # Its square is 60 % of the budget's, so one fits and two do not.
    release = GaussianRelease(sensitivity=100, noise_std=180.0)
    for round_ in range(15):
        path = tmp_path / f"{round_}.db"
        Ledger.create(path, BUDGETS).close()
        reading, writing = os.pipe()
        children = [
            fork(lambda path=path, n=n, r=reading: race(path, start=r, number=n, release=release))
            for n in (1, 2)
        ]
        os.write(writing, b"go")

        exits = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)

        os.close(reading)
        os.close(writing)
        assert exits == [0, 3]
        assert counts(path) == (1, 0)


def fill_disk(path: Path, out: int) -> NoReturn:
    ledger = Ledger.open(path, BUDGETS)
    size_bytes = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes + 40_000,) * 2)
    try:
        for number in range(18):
            ledger.reserve(key(number), purpose="churn", release=RELEASE, request_digest=DIGEST)
            os.write(out, b"r")
    except LedgerError as error:
        os.write(out, str(error).encode())
    os._exit(0)


def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, BUDGETS).close()
    reading, writing = os.pipe()

    os.waitpid(fork(lambda: fill_disk(path, writing)), 0)

    told = os.read(reading, 10_000).decode()
    acknowledged = len(told) - len(told.lstrip("r"))
    assert told[acknowledged:].startswith(f"the ledger {path} cannot be used: ")
    assert told.endswith("; nothing may be released")
    assert 0 < acknowledged < 18
    assert counts(path) == (acknowledged, 0)
    with Ledger.open(path, BUDGETS) as ledger:
        ledger.reserve(key(17), purpose="churn", release=RELEASE, request_digest=DIGEST)


def create_on_full_disk(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    with pytest.raises(LedgerError, match="no ledger could be created at"):
        Ledger.create(path, BUDGETS)


def test_creating_on_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    _, status = os.waitpid(fork(lambda: create_on_full_disk(tmp_path / "ledger.db")), 0)

    assert status == 0
    assert list(tmp_path.iterdir()) == []
