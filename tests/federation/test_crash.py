"""Nodes and coordinator in one real process that is killed at random moments."""

import os
import random
import signal
import time
from pathlib import Path

from consent import verify_published
from coordinator.rounds import RunStatus
from privacy import Budget, EventKind, Ledger
from tests.federation.synthetic import PURPOSE, Federation, config_of, events

BUDGET = Budget(epsilon=3.0, delta=1e-5)
KILLS = 12


def work(folder: Path) -> None:
    """Go on with the newest run, and begin others until the budget says no."""
    federation = Federation.open(folder, budget=BUDGET)
    for number in range(20):
        path = folder / f"plan-{number}"
        if path.exists():
            digest = path.read_text()
            signed, run = federation.host.run(digest)
            if run.status is RunStatus.RUNNING:
                federation.lead(signed.plan)
            continue
        plan = federation.plan(name=f"number {number}")
        federation.host.propose(federation.sign(plan))
        draft = folder / "draft"
        draft.write_text(plan.digest)
        draft.replace(path)
        if federation.lead(plan).status is RunStatus.FAILED:
            break
    federation.close()


def killed_after(folder: Path, seconds: float) -> bool:
    """Work in a child process and kill it; False if it had finished by then."""
    child = os.fork()
    if not child:
        try:
            work(folder)
        except BaseException as error:  # noqa: BLE001 - a forked test must never come back
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def test_a_federation_killed_at_any_moment_never_spends_more_than_its_budget(
    tmp_path: Path,
) -> None:
    moments = random.Random(11)  # noqa: S311
    names = ("amber", "birch", "cedar")
    Federation.create(tmp_path, names=names, customers=15, budget=BUDGET).close()
    kills = 0
    for _ in range(KILLS):
        kills += killed_after(tmp_path, moments.uniform(0.05, 0.35))
        for name in names:
            path = config_of(name, tmp_path).folder / "ledger.sqlite"
            with Ledger.open(path, {PURPOSE.value: BUDGET}) as ledger:
                assert ledger.spent(PURPOSE.value).epsilon <= BUDGET.epsilon

    work(tmp_path)

    federation = Federation.open(tmp_path, budget=BUDGET)
    assert kills >= KILLS // 2
    for node in federation.nodes.values():
        reserved = {
            (event.key.run, event.key.round, event.key.attempt)
            for event in node.ledger.history()
            if event.kind is EventKind.RESERVED and event.key is not None
        }
        charged, sent = set(), {}
        for event in events(node):
            key = (event.get("run"), event.get("round"), event.get("attempt"))
            if event["type"] == "budget.charged":
                charged.add(key)
            elif event["type"] == "release.sent":
                assert key in charged
                assert sent.setdefault(key, event["sha256"]) == event["sha256"]
        assert sent.keys() <= charged <= reserved
        assert len(sent) >= 6
        assert node.ledger.spent(PURPOSE.value).epsilon <= BUDGET.epsilon
        node.register.verify_replay()
        # Publishing may log the day's state root, which only the next head covers.
        witnessed = node.log.tree_size
        verdict = verify_published(node.publish(), federation.policy)
        assert verdict.entries == witnessed
    federation.close()
