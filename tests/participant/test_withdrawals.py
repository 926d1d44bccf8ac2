import time
from pathlib import Path

import httpx
import pytest

from consent import LogError, Profile, Purpose, Register, Watch
from participant.handle import issue_handle
from participant.node import Node, system_clock
from tests.federation.synthetic import Clock

from .service_client import served
from .spreading import LOOKALIKE, SHARING, agree_to, created, is_permitted

pytestmark = pytest.mark.usefixtures("both_stores")


def test_a_withdrawal_that_cannot_be_told_on_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[str]:
        raise LogError("the disk is full")

    with created("amber", tmp_path, clock=Clock()) as node:
        agree_to(node, "anna")
        size = node.log.tree_size
        for act in (node.withdraw, node.object, node.restrict, node.erase):
            with monkeypatch.context() as patch:
                patch.setattr(node.outbox, "enqueue", fail)
                with pytest.raises(LogError, match="the disk is full"):
                    act("anna")

        assert node.log.tree_size == size
        assert is_permitted(node, "anna")


def test_what_was_taken_back_here_is_not_recorded_again_when_others_say_so(
    tmp_path: Path,
) -> None:
    with created("amber", tmp_path, clock=Clock()) as node:
        agree_to(node, "anna")
        agree_to(node, "anna", purpose=LOOKALIKE)
        node.withdraw("anna", [SHARING])
        size, at = node.log.tree_size, node.clock()
        node.withdrawals.follow("anna", [SHARING], told_by="birch", at=at)
        assert node.log.tree_size == size
        node.withdrawals.follow("anna", [SHARING, LOOKALIKE], told_by="birch", at=at)

        assert node.log.opened(size)["purposes"] == [str(LOOKALIKE)]


def test_a_withdrawal_at_a_served_node_reaches_another_process(
    tmp_path: Path,
) -> None:
    node = created("amber", tmp_path)
    agree_to(node, "anna", purpose=Purpose.CONTACT)
    handle = issue_handle(node, "anna")
    key = (node.config.folder / "pseudonym.key").read_bytes()
    node.close()
    with served(node) as (url, _):
        reader = Register.open_readonly(
            node.config.folder / "log",
            pseudonym_key=key,
            profile=Profile.EU_GDPR,
            store=node.config.store,
        )
        watch = Watch(reader, max_staleness_ms=60_000)
        row = int(reader.rows(["anna"])[0])
        before = watch.is_permitted(row, Purpose.CONTACT, at=system_clock())
        headers = {"Authorization": f"Bearer {handle}", "Idempotency-Key": "once-upon"}
        answer = httpx.post(f"{url}/v1/withdraw-all", headers=headers, trust_env=False)
        answered = time.monotonic()
        while watch.is_permitted(row, Purpose.CONTACT, at=system_clock()):
            # Milliseconds on a quiet machine; the limit only ends a test that would hang.
            assert time.monotonic() - answered < 30
            time.sleep(0.005)
        reader.close()

    assert (before, answer.status_code) == (True, 200)
    Node.open(node.config).close()
