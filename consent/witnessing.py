"""Own witnessing over HTTP (C2SP tlog-witness): what is sent, and how a node asks a peer.

What a witness may cosign is decided by `Witness`, which remembers. An answer is believed only
after its signature was checked. Source: https://c2sp.org/tlog-witness
"""

from collections.abc import Sequence

import httpx

from consent.checkpoint import Checkpoint, verify_checkpoint
from consent.event import CLOCK_TOLERANCE_MS, LogError
from consent.identity import PublicIdentity
from consent.log import Log
from consent.note import Note, NoteError
from consent.submission import SIZE_TYPE, Submission
from consent.trust import TrustPolicy
from consent.watchtower import origin_hash

__all__ = ["SIZE_TYPE", "Submission", "WitnessRefused", "fetch_seen", "request_cosignature"]

_MOST_ANSWER_BYTES = 16_384
_MOST_TRIES = 3


class WitnessRefused(Exception):  # noqa: N818 - an answer, named for the answer
    """A witness gave no valid cosignature; the log's head is as it was.

    Attributes:
        status: HTTP status of the answer; None when there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def request_cosignature(
    url: str,
    log: Log,
    *,
    log_key: PublicIdentity,
    witness_key: PublicIdentity,
    at: int,
    known_size: int = 0,
    note: str | None = None,
    timeout_s: float = 10.0,
    verify_tls: bool | str = True,
) -> str:
    """Let a peer cosign the log's present head, and return the note with its cosignature.

    `Log.accept_cosigned` or `Log.collect` keeps what is returned.

    Args:
        url: Submission prefix of the witness, such as "https://node.example/witness".
        log: The own log.
        log_key: The key the log signs with.
        witness_key: The key the peer cosigns with.
        at: Epoch milliseconds, to refuse a cosignature of another time.
        known_size: Tree size the witness cosigned last; a wrong one costs one more call.
        note: The head to be cosigned; None for the present one.
        timeout_s: Seconds to wait for each part of an answer.
        verify_tls: Whether to check the peer's certificate, or a file of authorities to trust.

    Raises:
        WitnessRefused: No answer, a refusal, or one that is no valid cosignature of this head.
        LogError: The own log cannot be used.
    """
    note = log.checkpoint() if note is None else note
    size = Checkpoint.parse(Note.parse(note).text).tree_size
    address = f"{url.rstrip('/')}/add-checkpoint"
    # No proxy of the environment may see or change what two nodes say to each other.
    with httpx.Client(timeout=timeout_s, trust_env=False, verify=verify_tls) as client:
        for _ in range(_MOST_TRIES):
            proof = _prove(log, known_size, size) if known_size else ()
            body = Submission(old_size=known_size, proof=tuple(proof), note=note).format()
            status, kind, text = _send(client, "POST", address, body, witness=witness_key.name)
            if status == 200:
                return _checked(note + text, log_key=log_key, witness_key=witness_key, at=at)
            told = _told_size(text) if (status, kind) == (409, SIZE_TYPE) else None
            if told is None or told == known_size:
                break
            if told > size:
                raise WitnessRefused(
                    f"the witness {witness_key.name} has seen {told} entries, the log shows "
                    f"{size}: it was put back from an older copy, or somebody else uses its key",
                    status=status,
                )
            known_size = told
    raise WitnessRefused(
        f"the witness {witness_key.name} answered {status} and did not cosign", status=status
    )


def fetch_seen(
    url: str, origin: str, *, timeout_s: float = 10.0, verify_tls: bool | str = True
) -> str:
    """Return the newest note of a log that a witness says it has cosigned; nothing is checked.

    Args:
        url: Prefix of the witness, such as "https://node.example/witness".
        origin: The log.
        timeout_s: Seconds to wait for each part of an answer.
        verify_tls: Whether to check the peer's certificate, or a file of authorities to trust.

    Raises:
        WitnessRefused: No answer, or none with a note.
    """
    address = f"{url.rstrip('/')}/{origin_hash(origin)}/checkpoint"
    with httpx.Client(timeout=timeout_s, trust_env=False, verify=verify_tls) as client:
        status, _, text = _send(client, "GET", address, "", witness=url)
    if status != 200:
        raise WitnessRefused(f"the witness at {url} answered {status} and shows no head")
    return text


def _prove(log: Log, old: int, new: int) -> Sequence[bytes]:
    try:
        return log.consistency_proof(old, new)
    except ValueError as error:
        raise WitnessRefused(
            f"the witness is said to know {old} entries, the log shows {new}"
        ) from error


def _send(
    client: httpx.Client, method: str, url: str, body: str, *, witness: str
) -> tuple[int, str, str]:
    try:
        with client.stream(
            method, url, content=body.encode(), headers={"Content-Type": "text/plain"}
        ) as response:
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MOST_ANSWER_BYTES:
                    raise WitnessRefused(f"the witness {witness} sent too long an answer")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
            return response.status_code, kind, data.decode()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise WitnessRefused(
            f"the witness {witness} could not be reached ({type(error).__name__})"
        ) from error
    except UnicodeDecodeError as error:
        raise WitnessRefused(f"the witness {witness} sent no text") from error


def _told_size(text: str) -> int | None:
    number = text.removesuffix("\n")
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else None


def _checked(note: str, *, log_key: PublicIdentity, witness_key: PublicIdentity, at: int) -> str:
    name = witness_key.name
    policy = TrustPolicy(logs=(log_key,), witnesses={name: witness_key}, groups={}, quorum=name)
    try:
        seen_at = verify_checkpoint(note, policy).cosigners[name]
    except (NoteError, LogError) as error:
        raise WitnessRefused(f"the witness {name} sent no valid cosignature: {error}") from error
    if abs(seen_at - at) > CLOCK_TOLERANCE_MS:
        raise WitnessRefused(f"the witness {name} cosigned with a time five minutes off or more")
    return note
