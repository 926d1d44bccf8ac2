"""The sum with recovery against its vectors, and by another way where that is possible."""

import hashlib
import hmac
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy import SumRefused
from privacy.sum_wire import unpack

FOLDER = Path(__file__).parents[1] / "vectors" / "secure_sum" / "recovery"
VECTORS = sorted(FOLDER.glob("*.json"))
SCRIPT = runpy.run_path(str(FOLDER / "make.py"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_recovery_vectors(path: Path) -> None:
    """Each file is one case, named after its fault; `why` says it in words."""
    case = json.loads(path.read_text())
    state, request = bytes.fromhex(case["state"]), bytes.fromhex(case["request"])

    if case["refused"]:
        with pytest.raises(SumRefused) as refusal:
            SCRIPT["run"](case["step"], state, request)
        assert str(refusal.value) == case["refused"]
    else:
        assert SCRIPT["run"](case["step"], state, request).hex() == case["reply"]


def test_the_vectors_are_what_the_script_writes() -> None:
    cases, format_case = SCRIPT["cases"](), SCRIPT["format_case"]

    assert {path.stem for path in VECTORS} == set(cases)
    for path in VECTORS:
        assert path.read_text() == format_case(cases[path.stem])


def field(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def packed(*parts: bytes) -> bytes:
    return b"".join(field(part) for part in parts)


def hkdf(secret: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869 by hand, without a salt."""
    key = hmac.digest(bytes(32), secret, "sha256")
    found, last = b"", b""
    while len(found) < size:
        last = hmac.digest(key, last + info + bytes([len(found) // 32 + 1]), "sha256")
        found += last
    return found[:size]


def vector(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return case


def state_of(case: dict[str, Any]) -> dict[bytes, bytes]:
    parts = unpack(bytes.fromhex(case["state"]))[2:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_masked_values_are_what_the_documents_say_computed_another_way() -> None:
    """RFC 5869 by hand from HMAC, and counter mode by hand from AES blocks."""
    case = vector("happy_mask")
    state, deals = state_of(case), bytes.fromhex(case["request"])
    round_digest, deals_digest = state[b"round.digest"], hashlib.sha256(deals).digest()
    wide = hkdf(state[b"round_seed"], packed(b"self", round_digest), 64)
    own = (int.from_bytes(wide, "big") % (2**255 - 19)).to_bytes(32, "big")
    words = list(SCRIPT["VALUES"]["birch"])
    # Birch has the lowest name: it adds every mask.
    for seed in (
        own,
        *(
            hkdf(state[f"pair/{peer}".encode()], packed(b"seed", round_digest))
            for peer in ("cedar", "hazel", "maple", "rowan")
        ),
    ):
        key = hkdf(seed, packed(b"mask", deals_digest))
        aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
        block = aes.update(bytes(16))
        for place in range(3):
            words[place] += int.from_bytes(block[4 * place : 4 * place + 4], "little")

    body = b"".join((word % 2**32).to_bytes(4, "little") for word in words)

    head = b"tillpact sum 2\0\0" + round_digest + deals_digest
    assert bytes.fromhex(case["reply"]) == head + body


def test_sealed_shares_are_what_the_documents_say_computed_another_way() -> None:
    """The value at cedar's place of birch's polynomial, under AES-GCM with a key by hand."""
    case = vector("happy_deal")
    state, prime = state_of(case), 2**255 - 19
    sent = unpack(unpack(bytes.fromhex(case["reply"]))[0])[1:]
    round_digest, sealed = sent[0], sent[7]
    about = packed(b"shares", round_digest, b"birch", b"cedar")
    key = hkdf(state[b"pair/cedar"], packed(b"seal", about))
    plain = AESGCM(key).decrypt(bytes(12), sealed[:80], about)

    for place, what in enumerate((b"self", b"box")):
        wide = [hkdf(state[b"round_seed"], packed(what, round_digest), 64)]
        rest = hkdf(state[b"round_seed"], packed(what + b" polynomial", round_digest), 192)
        wide += [rest[64 * power : 64 * power + 64] for power in range(3)]
        share = sum(
            int.from_bytes(part, "big") % prime * 2**power for power, part in enumerate(wide)
        )
        assert plain[32 * place : 32 * place + 32] == (share % prime).to_bytes(32, "big")
