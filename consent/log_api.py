"""Own the public face of a log over HTTP: what anybody may read, and the witness for its peers.

Nothing here needs a name or a key: leaves are open events or commitments, and a submitted
checkpoint carries its own signature. Entries are shown up to the newest checkpoint only.
Sources: https://c2sp.org/tlog-proof, https://c2sp.org/tlog-tiles, https://c2sp.org/tlog-witness
"""

from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response

from consent.checkpoint import Checkpoint
from consent.log import Log
from consent.merkle import ProofError
from consent.note import Note, NoteError
from consent.problems import Problem, RequestRefused, declare
from consent.proof import prove
from consent.submission import SIZE_TYPE, Submission
from consent.tiles import HEIGHT, WIDTH, format_bundle, parse_tile_path
from consent.trust import TrustPolicy
from consent.watchtower import Convicted, OtherSize, UnknownLog, Watchtower, origin_hash

TILE_TYPE = "application/octet-stream"
MOST_ENTRIES = 256
_READ = (Problem.INVALID, Problem.NOT_PUBLISHED, Problem.FAULT, Problem.LOG_UNAVAILABLE)
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_SIZE = {SIZE_TYPE: {"schema": {"type": "string", "pattern": "^(0|[1-9][0-9]*)\\n$"}}}

router = APIRouter()


class LogDesk:
    """Shows one log and cosigns the logs of its peers."""

    def __init__(self, log: Log, tower: Watchtower, *, peers: TrustPolicy | None) -> None:
        """Watch the logs of a trust policy; without one, nobody's.

        Args:
            log: The log that is shown.
            tower: Cosigns, and remembers what it cosigned.
            peers: Whose logs are cosigned.
        """
        self._log = log
        self._tower = tower
        self._peers = peers

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

    def tile(self, path: str) -> tuple[bytes, bool]:
        """Return a tile or an entry bundle, and whether it is full and so never changes.

        Raises:
            RequestRefused: There is no such path, or the newest checkpoint does not cover it.
            LogError: The log cannot be read.
        """
        try:
            level, index, width = parse_tile_path(path)
        except ValueError as error:
            raise RequestRefused(Problem.NOT_FOUND) from error
        size = _head(self.checkpoint()).tree_size
        start = index * WIDTH
        if start + width > size >> HEIGHT * (level or 0):
            raise RequestRefused(Problem.NOT_PUBLISHED)
        if level is None:
            data = format_bundle(self._log.tree.leaves(start, start + width))
        else:
            data = b"".join(self._log.tree.hashes(HEIGHT * level, start, start + width))
        return data, width == WIDTH

    def watched(self, name: str) -> str:
        """Return the newest head that the witness knows of a log, by the hash of its origin.

        Raises:
            RequestRefused: The log is not watched, or was never cosigned.
            LogError: The memory of the witness cannot be used.
        """
        for log in () if self._peers is None else self._peers.logs:
            if origin_hash(log.name) == name:
                note = self._tower.newest(log.name)
                if note is not None:
                    return note
        raise RequestRefused(Problem.UNKNOWN_LOG)

    def cosign(self, body: bytes) -> str:
        """Return the cosignature line for a peer's checkpoint.

        Raises:
            RequestRefused: The body, the log, its signature or the proof is not right.
            OtherSize: The sender does not know what was cosigned last, or shows another history.
            LogError: The memory of the witness cannot be used.
        """
        try:
            submitted = Submission.parse(body.decode())
            _head(submitted.note)
        except (ValueError, NoteError) as error:
            raise RequestRefused(Problem.MALFORMED) from error
        try:
            return self._tower.judge(submitted, self._peers)
        except ValueError as error:
            raise RequestRefused(Problem.MALFORMED) from error
        except UnknownLog as error:
            raise RequestRefused(Problem.UNKNOWN_LOG) from error
        except NoteError as error:
            raise RequestRefused(Problem.NOT_SIGNED_BY_LOG) from error
        except ProofError as error:
            raise RequestRefused(Problem.PROOF_INVALID) from error
        except Convicted as error:
            raise RequestRefused(Problem.LOG_CONVICTED) from error


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


@router.get(
    "/log/tile/{path:path}",
    response_class=Response,
    responses=declare(Problem.NOT_FOUND, Problem.INVALID, Problem.FAULT, Problem.LOG_UNAVAILABLE)
    | {200: {"description": "A tile or an entry bundle.", "content": {TILE_TYPE: {}}}},
)
def tile(desk: Desk, path: str) -> Response:
    """Return hashes or entries in the layout of C2SP tlog-tiles; a full one may be kept."""
    data, is_full = desk.tile(path)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"} if is_full else {}
    return Response(data, media_type=TILE_TYPE, headers=headers)


@router.get(
    "/witness/{name}/checkpoint",
    response_class=PlainTextResponse,
    responses=declare(Problem.UNKNOWN_LOG, Problem.INVALID, Problem.FAULT, Problem.LOG_UNAVAILABLE),
)
def watched(desk: Desk, name: str) -> str:
    """Return the newest head that the witness knows of a log (SHA-256 of its origin, in hex)."""
    return desk.watched(name)


@router.post(
    "/witness/add-checkpoint",
    response_class=PlainTextResponse,
    responses=declare(
        Problem.MALFORMED,
        Problem.NOT_SIGNED_BY_LOG,
        Problem.LOG_CONVICTED,
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
    except OtherSize as known:
        return PlainTextResponse(f"{known.size}\n", status_code=409, media_type=SIZE_TYPE)


def _head(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)
