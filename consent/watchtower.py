"""Be a witness for one's peers: judge their heads, keep what convicts them, say what is known.

The same judgement serves HTTP and rounds. A log that signed two heads of one size is convicted by
a file of its own signatures in `evidence/`, and gets no cosignature until somebody takes that
file away by hand.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from consent.checkpoint import Checkpoint, cosign, verify_log_signature
from consent.durable import replace_files
from consent.equivocation import Evidence, EvidenceKind
from consent.event import LogError
from consent.identity import COSIGNATURE, Identity, PublicIdentity
from consent.log import Log
from consent.merkle import ProofError
from consent.note import Note, NoteError
from consent.submission import Submission
from consent.trust import TrustPolicy
from consent.witness import EquivocationError, Witness

SEEN_ELSEWHERE = "seen-elsewhere"
_EVIDENCE = "evidence"


class UnknownLog(Exception):  # noqa: N818 - an answer, named for the answer
    """This witness does not watch that log; nothing was cosigned."""


class OtherSize(Exception):  # noqa: N818 - an answer, named for the answer
    """The witness cosigned another size last; nothing was cosigned.

    Attributes:
        size: Tree size that it cosigned last.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness cosigned size {size} last; nothing was cosigned")
        self.size = size


class Convicted(Exception):  # noqa: N818 - an answer, named for the answer
    """The log is convicted of two histories; nothing of it is cosigned any more.

    Attributes:
        evidence: Its own signatures that say so.
    """

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(
            f"the log {evidence.log.name!r} signed two different heads of one size; nothing of it "
            "is cosigned until somebody has looked into it"
        )
        self.evidence = evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """What a witness says to one head of one log that was relayed to it.

    Attributes:
        origin: The log.
        line: The cosignature line; empty when it was refused.
    """

    origin: str
    line: str


class Watchtower:
    """One witness with its memory, its convictions, and the own log that it answers for."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        log: Log,
        *,
        clock: Callable[[], int],
    ) -> None:
        """Open the memory in a node's folder, and read what was found before.

        Args:
            folder: Holds `witness.sqlite` and `evidence/`. Trusted: whoever can write here can
                make the witness forget.
            identity: Cosigns.
            log: The own log: convictions are written there, and it must not be older than what
                the own witness has seen of it.
            clock: Tells epoch milliseconds.

        Raises:
            LogError: The memory cannot be opened.
            NoteError: A file in `evidence/` is no evidence.
        """
        self._folder, self._identity, self._log, self._clock = folder, identity, log, clock
        self._lock = threading.RLock()
        self._convicted: dict[str, Evidence] = {}
        for path in sorted((folder / _EVIDENCE).glob("*.json")):
            evidence = Evidence.parse(path.read_bytes())
            self._convicted[evidence.log.name] = evidence
        self._witness = Witness(folder / "witness.sqlite", identity)

    def close(self) -> None:
        """Close the memory; a second time does nothing."""
        self._witness.close()

    @property
    def convicted(self) -> Mapping[str, Evidence]:
        """Return the evidence against each convicted log, by origin."""
        with self._lock:
            return dict(self._convicted)

    def size_of(self, origin: str) -> int:
        """Return the size that was cosigned last, 0 for an unknown log."""
        with self._lock:
            return self._witness.size_of(origin)

    def known_sizes(self, peers: TrustPolicy) -> dict[str, int]:
        """Return the size that was cosigned last of every log of a policy."""
        return {log.name: self.size_of(log.name) for log in peers.logs}

    def newest(self, origin: str) -> str | None:
        """Return the head that was cosigned last, cosigned again now; None for an unknown log."""
        with self._lock:
            note = self._witness.seen(origin)
        return None if note is None else cosign(note, self._identity, at=self._clock())

    def judge(self, submitted: Submission, peers: TrustPolicy | None) -> str:
        """Return the cosignature line for a head that extends the one known.

        Raises:
            UnknownLog: The policy does not name the log.
            NoteError: The log did not sign the head.
            OtherSize: Another size was cosigned last, or the head is not the one of that size.
            ProofError: The proof does not show that the log only grew.
            Convicted: The log signed two histories, now or before.
            LogError: The memory cannot be used, or was put back together with the own log.
            ValueError: The old size is larger than the head's.
        """
        log = _known(_head(submitted.note).origin, peers)
        shown = verify_log_signature(submitted.note, log)
        if submitted.old_size > shown.tree_size:
            raise ValueError(f"old_size must be in [0, {shown.tree_size}]")
        # A witness whose memory was put back must not speak: it may have forgotten a larger head.
        self.verify_not_put_back()
        # Between the question for the size and the cosignature nobody else is answered.
        with self._lock:
            if log.name in self._convicted:
                raise Convicted(self._convicted[log.name])
            known = self._witness.size_of(log.name)
            if known not in (submitted.old_size, shown.tree_size):
                raise OtherSize(known)
            proof = submitted.proof if submitted.old_size == known else ()
            try:
                note = self._witness.cosign(submitted.note, log=log, proof=proof, at=self._clock())
            except EquivocationError as error:
                self.convict(error.evidence(log))
                raise OtherSize(known) from error
            if submitted.old_size != known:
                raise OtherSize(known)
        return self._line(note)

    def judge_relayed(self, submissions: Iterable[str], peers: TrustPolicy) -> tuple[Cosigned, ...]:
        """Answer for heads that somebody passes on; whoever passes them on need not be believed.

        Raises:
            LogError: The memory cannot be used.
        """
        return tuple(self._judge_one(text, peers) for text in submissions)

    def cosign_own(self) -> str:
        """Return the own log's head with the own cosignature: memory and log agree.

        Raises:
            LogError: The own log is older than what the own witness or key has signed.
        """
        with self._lock:
            self.verify_not_put_back()
            known, note = self._witness.size_of(self._log.origin), self._log.checkpoint()
            size = _head(note).tree_size
            proof = self._log.consistency_proof(known, size) if 0 < known < size else ()
            try:
                return self._witness.cosign(
                    note, log=self._identity.public, proof=proof, at=self._clock()
                )
            except (EquivocationError, ProofError, NoteError) as error:
                raise LogError(_put_back(self._log, known, "its own witness")) from error

    def verify_not_put_back(self) -> None:
        """Refuse to go on with a log that is older than a head its own key signed.

        Raises:
            LogError: The own witness, or another one that showed the signed note, has seen a
                head that this log does not extend.
        """
        path = self._folder / SEEN_ELSEWHERE
        with self._lock:
            shown = {"its own witness": self._witness.seen(self._log.origin)}
        if path.is_file():
            shown["another witness"] = path.read_text(encoding="utf-8")
        for who, note in shown.items():
            if note is None:
                continue
            head = verify_log_signature(note, self._identity.public)
            is_here = head.tree_size <= self._log.tree_size
            if not is_here or self._log.root_at(head.tree_size) != head.root_hash:
                raise LogError(_put_back(self._log, head.tree_size, who))

    def remember_elsewhere(self, note: str) -> None:
        """Keep a head of the own log that this log does not extend; nothing leaves from now on.

        Raises:
            NoteError: The own key did not sign it, so that it says nothing.
        """
        head = verify_log_signature(note, self._identity.public)
        path = self._folder / SEEN_ELSEWHERE
        # Several witnesses may show one at once; the largest says the most.
        with self._lock:
            if path.is_file() and _head(path.read_text("utf-8")).tree_size >= head.tree_size:
                return
            replace_files(self._folder, {SEEN_ELSEWHERE: note.encode()})

    def convict(self, evidence: Evidence) -> bool:
        """Keep two heads of one size, found here or shown by somebody; tell whether it is new.

        Raises:
            NoteError: The notes do not convict the log.
        """
        if evidence.kind is not EvidenceKind.TWO_HEADS:
            raise NoteError("a smaller head after a larger one convicts nobody")
        origin = evidence.log.name
        with self._lock:
            if origin in self._convicted:
                return False
            name = f"{origin_hash(origin)[:16]}.json"
            replace_files(self._folder / _EVIDENCE, {name: evidence.format()})
            self._convicted[origin] = evidence
            self._log.append(
                {
                    "type": "witness.conflict",
                    "v": 1,
                    "at": self._clock(),
                    "origin": origin,
                    "tree_size": _head(evidence.shown).tree_size,
                    "known": evidence.known,
                    "shown": evidence.shown,
                }
            )
            return True

    def release(self, origin: str) -> None:
        """Take the evidence against a log aside, by hand of somebody who looked into it.

        Raises:
            UnknownLog: The log is not convicted.
        """
        with self._lock:
            if origin not in self._convicted:
                raise UnknownLog(f"the log {origin!r} is not convicted; nothing was changed")
            path = self._folder / _EVIDENCE / f"{origin_hash(origin)[:16]}.json"
            path.rename(path.with_suffix(f".{self._clock()}.released"))
            del self._convicted[origin]

    def _judge_one(self, text: str, peers: TrustPolicy) -> Cosigned:
        origin = ""
        try:
            submitted = Submission.parse(text)
            origin = _head(submitted.note).origin
            return Cosigned(origin=origin, line=self.judge(submitted, peers))
        except (UnknownLog, OtherSize, Convicted, NoteError, ProofError, ValueError):
            return Cosigned(origin=origin, line="")

    def _line(self, note: str) -> str:
        key = self._identity.public
        line = Note.parse(note).find(key.name, key.key_id(COSIGNATURE))
        if line is None:
            raise TypeError("a witness returned a note without its cosignature")
        return line.format()


def origin_hash(origin: str) -> str:
    """Return how a log is named in an address: SHA-256 of its origin, 64 hex digits."""
    return hashlib.sha256(origin.encode()).hexdigest()


def _known(origin: str, peers: TrustPolicy | None) -> PublicIdentity:
    if peers is None:
        raise UnknownLog(f"no log is watched, and not {origin!r}; nothing was cosigned")
    try:
        return peers.log(origin)
    except NoteError as error:
        raise UnknownLog(f"the log {origin!r} is not watched; nothing was cosigned") from error


def _put_back(log: Log, size: int, who: str) -> str:
    return (
        f"the log {log.origin!r} holds {log.tree_size} entries and does not extend the head of "
        f"{size} that its own key signed and {who} has seen: it was put back from an older copy, "
        "or somebody else has its key; nothing leaves here until the newest copy is restored"
    )


def _head(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)
