"""Keep a log's newest head cosigned: ask the policy's witnesses over HTTP, time and again.

All are asked at once and none is waited for longer than the others need. Each cosignature is kept
as it comes. When a witness shows a head that the own key signed and the own log does not extend,
the log was put back from an older copy, and nothing is signed any more.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from consent.canonical import JsonValue
from consent.checkpoint import verify_cosignatures, verify_log_signature
from consent.event import LogError
from consent.identity import PublicIdentity
from consent.log import Log
from consent.note import NoteError
from consent.trust import TrustPolicy, Witnessing
from consent.watchtower import Watchtower
from consent.witnessing import WitnessRefused, fetch_seen, request_cosignature

COSIGNED, STALE = "witness.cosigned", "witness.stale"
CHECKPOINT_EVERY_S = 5.0
_EVENTS_APART_MS = 3_600_000
_PASS_TIMEOUT_S = 20.0
# Answers after which it is worth asking what the witness has seen: another history, perhaps.
_CONTRADICTIONS = frozenset({403, 409, 422})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass over the witnesses brought.

    Attributes:
        tree_size: Size of the head that was shown.
        cosigners: Time of each fresh cosignature, epoch milliseconds, by witness.
        refused: Why each of the others has not cosigned.
        is_met: Whether the fresh cosignatures are the quorum.
    """

    tree_size: int
    cosigners: Mapping[str, int]
    refused: Mapping[str, str]
    is_met: bool


class Cosigner:
    """Asks the witnesses of one log."""

    def __init__(
        self,
        log: Log,
        tower: Watchtower,
        *,
        policy: TrustPolicy,
        settings: Witnessing,
        clock: Callable[[], int],
    ) -> None:
        """Take an open log; nobody is asked before `ask` or `step`.

        Args:
            log: The own log.
            tower: The own witness, which cosigns too and guards against older copies.
            policy: Who is asked, where, and what a quorum is; it knows the own log.
            settings: How often.
            clock: Tells epoch milliseconds.

        Raises:
            NoteError: The policy does not know the own log.
        """
        self._log, self._tower, self._policy = log, tower, policy
        self._settings, self._clock = settings, clock
        self._key = policy.log(log.origin)
        self._known: dict[str, int] = {}
        self._last: Pass | None = None
        self._asked_at = self._told_at = 0
        self._published = ""

    def ask(self, *, timeout_s: float = 10.0) -> Pass:
        """Show the present head to every witness at once and keep what they cosign.

        Args:
            timeout_s: Seconds to wait for each part of an answer.

        Raises:
            LogError: The log cannot be used, or was put back from an older copy; nothing was
                signed.
        """
        note = self._tower.cosign_own()
        size = verify_log_signature(note, self._key).tree_size
        merged = self._log.collect(note, self._policy)
        refused: dict[str, str] = {}
        asked = {
            name: key
            for name, key in self._policy.witnesses.items()
            if name in self._policy.urls and key.key != self._key.key
        }
        pool = ThreadPoolExecutor(max_workers=max(1, min(32, len(asked))))
        try:
            futures = {
                pool.submit(self._ask_one, name, key, note, timeout_s): name
                for name, key in asked.items()
            }
            waiting = dict.fromkeys(futures.values(), "no answer in time")
            with contextlib.suppress(TimeoutError):
                for future in as_completed(futures, timeout=_PASS_TIMEOUT_S):
                    name = futures[future]
                    del waiting[name]
                    try:
                        merged = self._log.collect(future.result(), self._policy)
                        self._known[name] = size
                    except (WitnessRefused, NoteError) as error:
                        refused[name] = str(error)
            refused.update(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self._tower.verify_not_put_back()
        now = self._clock()
        fresh = {
            name: at
            for name, at in verify_cosignatures(merged, self._policy).cosigners.items()
            if now - at <= self._settings.max_age_s * 1000
        }
        is_met = self._policy.is_quorum(fresh)
        return Pass(tree_size=size, cosigners=fresh, refused=refused, is_met=is_met)

    def step(self, publish: Callable[[], object]) -> None:
        """Do what is due: sign the present head, ask the witnesses, publish a newer note.

        Raises:
            LogError: The log cannot be used, or was put back from an older copy.
        """
        self._tower.verify_not_put_back()
        self._log.checkpoint()
        if self._policy.urls and self._is_due():
            self._asked_at = self._clock()
            self._tell(self.ask())
        newest = self._log.newest_note()
        if newest != self._published:
            publish()
            self._published = newest

    def _is_due(self) -> bool:
        waited_s = (self._clock() - self._asked_at) / 1000
        if 0 <= waited_s < self._settings.every_s:
            return False
        last = self._last
        if last is None or not last.is_met or last.tree_size != self._log.tree_size:
            return True
        return self._clock() - min(last.cosigners.values()) > self._settings.max_age_s * 500

    def _ask_one(self, name: str, key: PublicIdentity, note: str, timeout_s: float) -> str:
        url = self._policy.urls[name]
        try:
            return request_cosignature(
                url,
                self._log,
                log_key=self._key,
                witness_key=key,
                at=self._clock(),
                known_size=self._known.get(name, 0),
                note=note,
                timeout_s=timeout_s,
            )
        except WitnessRefused as error:
            if error.status in _CONTRADICTIONS:
                self._look_elsewhere(url, timeout_s)
            raise

    def _look_elsewhere(self, url: str, timeout_s: float) -> None:
        """Ask a witness for the head that it knows; believe only what the own key signed."""
        try:
            seen = fetch_seen(url, self._log.origin, timeout_s=timeout_s)
            head = verify_log_signature(seen, self._key)
        except (WitnessRefused, NoteError):
            return
        is_here = head.tree_size <= self._log.tree_size
        if not is_here or self._log.root_at(head.tree_size) != head.root_hash:
            self._tower.remember_elsewhere(seen)

    def _tell(self, done: Pass) -> None:
        """Log that the quorum was reached or lost; the same again at most once an hour."""
        now, last = self._clock(), self._last
        self._last = done
        is_change = last is None or last.is_met != done.is_met
        if not is_change and now - self._told_at < _EVENTS_APART_MS:
            return
        self._told_at = now
        missing = sorted(set(self._policy.witnesses) - set(done.cosigners))
        about: dict[str, JsonValue] = {
            "tree_size": done.tree_size,
            "cosigners": [*sorted(done.cosigners)],
            "missing": [*missing],
        }
        kind = COSIGNED if done.is_met else STALE
        self._log.append({"type": kind, "v": 1, "at": now, **about})
        _log.info("%s at %d entries; missing: %s", kind, done.tree_size, ", ".join(missing))


@contextlib.contextmanager
def keeping_cosigned(
    cosigner: Cosigner, *, publish: Callable[[], object], every_s: float = CHECKPOINT_EVERY_S
) -> Iterator[None]:
    """Run a cosigner's steps in a thread while the block runs.

    Args:
        cosigner: Whose steps.
        publish: Writes the published copy of the log; called when its newest note has changed.
        every_s: Seconds between two steps.
    """
    stop = threading.Event()

    def work() -> None:
        complaint = ""
        while True:
            try:
                cosigner.step(publish)
                complaint = ""
            except (LogError, NoteError, OSError) as error:
                # Said once; the operator sees a service that goes on without cosignatures.
                if str(error) != complaint:
                    complaint = str(error)
                    _log.error("the log is not cosigned: %s", complaint)
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=work, name="cosigner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_PASS_TIMEOUT_S)
