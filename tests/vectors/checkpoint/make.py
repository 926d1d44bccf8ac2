"""Make the checkpoint vectors again: one file per fault, from fixed keys and times.

Run `python tests/vectors/checkpoint/make.py` to rewrite them; a test compares.
"""

import base64
import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent import Checkpoint, Identity, cosign, sign_checkpoint

ORIGIN = "brand-a.example/log"
AT = 1_795_293_098_800


def named(name: str, seed: str) -> Identity:
    """Return an identity whose key follows from a seed; for vectors only."""
    key = hashlib.sha256(seed.encode()).digest()
    return Identity(name, Ed25519PrivateKey.from_private_bytes(key))


def vectors() -> dict[str, dict[str, str | None]]:
    """Return every case by its name: why, note, policy, and the error or null."""
    log, other = named(ORIGIN, "log"), named(ORIGIN, "another log key")
    coordinator, peer = named("coordinator.example", "coord"), named("peer.example", "peer")
    policy = (
        f"log {log.public.format()}\n"
        f"witness coordinator {coordinator.public.format_witness()}\n"
        f"witness peer {peer.public.format_witness()}\n"
        "group everybody all coordinator peer\n"
        "quorum everybody\n"
    )
    head = Checkpoint(ORIGIN, 52, hashlib.sha256(b"root").digest())
    signed = sign_checkpoint(head, log)
    one = cosign(signed, coordinator, at=AT)
    both = cosign(one, peer, at=AT + 5000)
    forged = cosign(cosign(sign_checkpoint(head, other), coordinator, at=AT), peer, at=AT)
    lines = both.split("\n")
    text, signatures = "\n".join(lines[:3]) + "\n", lines[4:-1]
    root = base64.b64encode(head.root_hash).decode()

    def note(*parts: str) -> str:
        return "\n".join(parts) + "\n"

    def case(why: str, note: str, error: str | None) -> dict[str, str | None]:
        return {"why": why, "note": note, "policy": policy, "error": error}

    stranger = cosign(both, named("stranger.example", "stranger"), at=AT)
    corrupt = base64.b64decode(signatures[0].split(" ")[2])
    corrupt_line = f"— {ORIGIN} {base64.b64encode(corrupt[:-1] + b'x').decode()}"
    later = base64.b64decode(signatures[1].split(" ")[2])
    later = later[:4] + (int.from_bytes(later[4:12], "big") + 1).to_bytes(8, "big") + later[12:]
    later_line = f"— coordinator.example {base64.b64encode(later).decode()}"
    renamed = both.replace(ORIGIN, "brand-b.example/log")
    return {
        "happy-path": case("signed by the log and cosigned by both", both, None),
        "stranger-cosigned-too": case("unknown signatures are ignored", stranger, None),
        "no-cosignature": case("only the log signed", signed, "cosigned by nobody"),
        "one-of-two": case("the quorum needs both", one, "cosigned by coordinator"),
        "another-key-of-the-log": case("forged by a key of that name", forged, "is not signed by"),
        "log-signature-corrupt": case(
            "last byte of the signature changed",
            note(text, corrupt_line, *signatures[1:]),
            f"the signature of the log '{ORIGIN}' is not valid",
        ),
        "cosignature-postdated": case(
            "the time of a cosignature changed",
            note(text, signatures[0], later_line, signatures[2]),
            "the cosignature of 'coordinator.example' is not valid",
        ),
        "cosignature-without-time": case(
            "a cosignature too short to hold a time",
            note(
                text,
                signatures[0],
                f"— coordinator.example {base64.b64encode(later[:4] + later[12:]).decode()}",
            ),
            "must be a time and 64 bytes",
        ),
        "unknown-origin": case("another log's name", renamed, "knows no log with the origin"),
        "size-changed": case("52 became 53", both.replace("\n52\n", "\n53\n"), "is not valid"),
        "size-with-leading-zero": case(
            "052", both.replace("\n52\n", "\n052\n"), "in its only canonical spelling"
        ),
        "size-negative": case("-52", both.replace("\n52\n", "\n-52\n"), "must be in [0, 2^63)"),
        "size-too-large": case(
            "2^63", both.replace("\n52\n", f"\n{2**63}\n"), "must be in [0, 2^63)"
        ),
        "root-short": case("31 bytes", both.replace(root, "A" * 40 + "AA=="), "have 32 bytes"),
        "root-not-base64": case("not base64", both.replace(root, "*" * 44), "must be base64"),
        "extension-line": case(
            "a fourth line", both.replace(root + "\n", root + "\nmore\n"), "must be three lines"
        ),
        "origin-missing": case("no origin", both.replace(ORIGIN, "", 1), "one printable line"),
        "no-signature-line": case("text alone", text + "\n", "at least one signature line"),
        "no-blank-line": case("no separator", text, "at least one signature line"),
        "carriage-return": case("CRLF", both.replace("\n", "\r\n"), "control characters"),
        "plain-dash": case("hyphen for the dash", both.replace("— ", "- "), "must read: dash"),
        "signature-not-base64": case("a star", both.replace("==\n", "=*\n"), "canonical base64"),
        "signature-padding-bits": case(
            "padding bits set",
            note(text, f"— {ORIGIN} AAAAAAB="),
            "is not in canonical base64",
        ),
        "signature-empty": case(
            "key id and no more", note(text, f"— {ORIGIN} AAAAAA=="), "holds no signature"
        ),
        "too-many-signatures": case(
            "65 lines", note(text, *[signatures[0]] * 65), "at most 64 signatures"
        ),
        "not-utf-8": case("half a surrogate", both + "\ud800", "must be valid UTF-8"),
    }


def format_vector(case: dict[str, str | None]) -> str:
    """Write one case as its file holds it."""
    return json.dumps(case, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for stem, content in vectors().items():
        Path(__file__).with_name(f"{stem}.json").write_text(format_vector(content))
