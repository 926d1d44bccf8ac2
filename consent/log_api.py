"""Own the public face of a log over HTTP: what anybody may read, and the witness for its peers.

Nothing here needs a name or a key: leaves are open events or commitments, and a submitted
checkpoint carries its own signature. Entries are shown up to the newest checkpoint only.
Sources: https://c2sp.org/tlog-proof, https://c2sp.org/tlog-witness
"""

import threading
from collections.abc import Callable
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from consent.checkpoint import Checkpoint, verify_log_signature
from consent.identity import COSIGNATURE, PublicIdentity
from consent.log import Log
from consent.merkle import ProofError
from consent.note import Note, NoteError
from consent.problems import Problem, RequestRefused, declare
from consent.proof import prove
from consent.trust import TrustPolicy
from consent.witness import EquivocationError, Witness
from consent.witnessing import SIZE_TYPE, Submission

MOST_ENTRIES = 256
_READ = (Problem.INVALID, Problem.NOT_PUBLISHED, Problem.FAULT, Problem.LOG_UNAVAILABLE)
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_SIZE = {SIZE_TYPE: {"schema": {"type": "string", "pattern": "^(0|[1-9][0-9]*)\\n$"}}}

router = APIRouter()


class _OldSize(Exception):  # noqa: N818 - an answer, named for the answer
    """The witness knows another size; the answer tells which."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness cosigned size {size} last")
        self.size = size


class LogDesk:
    """Shows one log and cosigns the logs of its peers."""

    def __init__(
        self,
        log: Log,
        witness: Witness,
        *,
        peers: TrustPolicy | None,
        clock: Callable[[], int],
    ) -> None:
        """Watch the logs of a trust policy; without one, nobody's.

        Args:
            log: The log that is shown.
            witness: Cosigns, and remembers what it cosigned.
            peers: Whose logs are cosigned.
            clock: Tells epoch milliseconds, for cosignatures and convictions.
        """
        self._log = log
        self._witness = witness
        self._peers = peers
        self._clock = clock
        self._lock = threading.Lock()
        self._convicted: set[tuple[str, int]] = set()

    def checkpoint(self) -> str:
        """Return the newest cosigned note, or the own one when nobody has cosigned."""
        return self._log.newest_note()

    def entries(self, start: int, end: int) -> bytes:
        """Return published leaves, one a line; at most `MOST_ENTRIES`.

        Raises:
            RequestRefused: There is no such entry under the newest checkpoint.
            LogError: The log cannot be read.
        """
        if end <= start:
            raise RequestRefused(Problem.INVALID)
        size = _head(self.checkpoint()).tree_size
        if start >= size:
            raise RequestRefused(Problem.NOT_PUBLISHED)
        entries = self._log.entries(start, min(end, size, start + MOST_ENTRIES))
        return b"".join(entry.leaf + b"\n" for entry in entries)

    def proof(self, index: int) -> str:
        """Return the C2SP tlog-proof of one entry.

        Raises:
            RequestRefused: The newest checkpoint does not cover it.
            LogError: The log cannot be read.
        """
        if index >= _head(self.checkpoint()).tree_size:
            raise RequestRefused(Problem.NOT_PUBLISHED)
        return prove(self._log, index)

    def cosign(self, body: bytes) -> str:
        """Return the cosignature line for a peer's checkpoint.

        Raises:
            RequestRefused: The body, the log, its signature or the proof is not right.
            _OldSize: The sender does not know what was cosigned last, or shows another history.
            LogError: The memory of the witness cannot be used.
        """
        try:
            submitted = Submission.parse(body.decode())
            shown = _head(submitted.note)
        except (ValueError, NoteError) as error:
            raise RequestRefused(Problem.MALFORMED) from error
        log = self._known(shown.origin)
        try:
            verify_log_signature(submitted.note, log)
        except NoteError as error:
            raise RequestRefused(Problem.NOT_SIGNED_BY_LOG) from error
        if submitted.old_size > shown.tree_size:
            raise RequestRefused(Problem.MALFORMED)
        # Between the question for the size and the cosignature nobody else is answered.
        with self._lock:
            known = self._witness.size_of(log.name)
            if submitted.old_size != known:
                raise _OldSize(known)
            return self._cosign(submitted, log)

    def _cosign(self, submitted: Submission, log: PublicIdentity) -> str:
        try:
            note = self._witness.cosign(
                submitted.note, log=log, proof=submitted.proof, at=self._clock()
            )
        except ProofError as error:
            raise RequestRefused(Problem.PROOF_INVALID) from error
        except NoteError as error:
            raise RequestRefused(Problem.NOT_SIGNED_BY_LOG) from error
        except EquivocationError as error:
            self._convict(log, error)
            raise _OldSize(submitted.old_size) from error
        key = self._witness.public
        line = Note.parse(note).find(key.name, key.key_id(COSIGNATURE))
        if line is None:
            raise TypeError("a witness returned a note without its cosignature")
        return line.format()

    def _known(self, origin: str) -> PublicIdentity:
        if self._peers is None:
            raise RequestRefused(Problem.UNKNOWN_LOG)
        try:
            return self._peers.log(origin)
        except NoteError as error:
            raise RequestRefused(Problem.UNKNOWN_LOG) from error

    def _convict(self, log: PublicIdentity, error: EquivocationError) -> None:
        """Write two contradicting heads to the own log: public keys are enough to judge them."""
        size = _head(error.shown).tree_size
        # Once for a size: a peer must not fill this log by signing ever more heads.
        if (log.name, size) not in self._convicted:
            self._convicted.add((log.name, size))
            self._log.append(
                {
                    "type": "witness.conflict",
                    "v": 1,
                    "at": self._clock(),
                    "origin": log.name,
                    "tree_size": size,
                    "known": error.known,
                    "shown": error.shown,
                }
            )


def _desk(request: Request) -> LogDesk:
    desk = request.app.state.log_desk
    if not isinstance(desk, LogDesk):
        raise TypeError("the service was started without a log")
    return desk


Desk: TypeAlias = Annotated[LogDesk, Depends(_desk)]


@router.get(
    "/log/checkpoint",
    response_class=PlainTextResponse,
    responses=declare(Problem.FAULT, Problem.LOG_UNAVAILABLE),
)
def checkpoint(desk: Desk) -> str:
    """Return the newest cosigned checkpoint of the log."""
    return desk.checkpoint()


@router.get("/log/entries", response_class=PlainTextResponse, responses=declare(*_READ))
def entries(
    desk: Desk,
    start: Annotated[int, Query(ge=0, lt=2**53)],
    end: Annotated[int, Query(ge=0, lt=2**53)],
) -> PlainTextResponse:
    """Return the leaves [start, end) as the tree commits to them, one a line, or the first few."""
    return PlainTextResponse(desk.entries(start, end))


@router.get("/log/proof", response_class=PlainTextResponse, responses=declare(*_READ))
def proof(desk: Desk, index: Annotated[int, Query(ge=0, lt=2**53)]) -> str:
    """Return the inclusion proof of one entry under the newest checkpoint."""
    return desk.proof(index)


@router.post(
    "/witness/add-checkpoint",
    response_class=PlainTextResponse,
    responses=declare(
        Problem.MALFORMED,
        Problem.NOT_SIGNED_BY_LOG,
        Problem.UNKNOWN_LOG,
        Problem.BODY_TOO_LARGE,
        Problem.PROOF_INVALID,
        Problem.FAULT,
        Problem.LOG_UNAVAILABLE,
    )
    | {409: {"description": "The tree size that was cosigned last.", "content": _SIZE}},
    openapi_extra={"requestBody": {"required": True, "content": _TEXT}},
)
async def add_checkpoint(request: Request) -> PlainTextResponse:
    """Cosign a peer's checkpoint, as C2SP tlog-witness describes."""
    body = await request.body()
    return await run_in_threadpool(_add_checkpoint, _desk(request), body)


def _add_checkpoint(desk: LogDesk, body: bytes) -> PlainTextResponse:
    try:
        return PlainTextResponse(desk.cosign(body))
    except _OldSize as known:
        return PlainTextResponse(f"{known.size}\n", status_code=409, media_type=SIZE_TYPE)


def _head(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)
