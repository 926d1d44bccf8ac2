from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, Log, LogError, NoteError, ProofError, SubjectRef, TrustPolicy, cosign
from consent.event import Event
from consent.proof import (
    TlogProof,
    format_proof,
    parse_proof,
    prove,
    prove_opened,
    verify_opened_proof,
    verify_proof,
)
from tests.conftest import Stores

ANNA = SubjectRef("a" * 64)


@pytest.fixture
def stores() -> Stores:
    """In which engine a log is makes no difference here."""
    return lambda: None


def _event(at: int) -> Event:
    return {"type": "x", "at": at, "v": 1}


@pytest.fixture
def proofs(log: Log, coordinator: Identity, policy: TrustPolicy) -> tuple[str, str]:
    """Proofs of the open entry 0 and of the sealed entry 5, opened."""
    for at in range(5):
        log.append(_event(at))
    log.append_sealed(ANNA, _event(125_000))
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=9_000), policy)
    log.append(_event(6))
    return prove(log, 0), prove_opened(log, 5)


def test_an_entry_is_proved_offline(log: Log, proofs: tuple[str, str], policy: TrustPolicy) -> None:
    verified = verify_proof(proofs[0], leaf=log.entry(0).leaf, policy=policy)

    assert verified.checkpoint.tree_size == 6
    assert verified.cosigners == {"coordinator": 9_000}
    assert proofs[0].startswith("c2sp.org/tlog-proof@v1\nindex 0\n")


def test_a_sealed_entry_is_proved_with_what_opens_it(
    log: Log, proofs: tuple[str, str], policy: TrustPolicy
) -> None:
    opening = verify_opened_proof(proofs[1], policy=policy)

    assert opening.link.event == _event(125_000)
    assert opening.leaf == log.entry(5).leaf
    assert proofs[1].startswith("c2sp.org/tlog-proof@v1\nextra ")


def test_the_example_of_the_specification_has_our_shape() -> None:
    # https://c2sp.org/tlog-proof, shortened to the lines before the signatures
    text = (
        "c2sp.org/tlog-proof@v1\n"
        "extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6\n"
        "index 73894\n"
        "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n"
        "B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n"
        "\n"
        "example.com/fancylog\n109482\nsFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=\n"
    )

    parsed = parse_proof(text)

    assert (parsed.index, len(parsed.hashes)) == (73_894, 2)
    assert parsed.extra == b"age-v1.2.1-darwin-arm64.tar.gz"
    assert parsed.note.startswith("example.com/fancylog\n109482\n")
    assert format_proof(parsed) == text


hashes = st.lists(st.binary(min_size=32, max_size=32), max_size=63).map(tuple)


@given(st.integers(0, 2**63 - 1), hashes, st.text(max_size=30), st.binary(max_size=40))
def test_a_proof_reads_back_as_it_was(
    index: int, hashes: tuple[bytes, ...], note: str, extra: bytes
) -> None:
    proof = TlogProof(index=index, hashes=hashes, note=note, extra=extra)

    assert parse_proof(format_proof(proof)) == proof


@given(st.text(max_size=60))
def test_garbage_raises_only_a_proof_error(text: str) -> None:
    policy = TrustPolicy.parse("quorum none\n")
    for candidate in (
        text,
        f"c2sp.org/tlog-proof@v1\n{text}",
        f"c2sp.org/tlog-proof@v1\nindex 1\n{text}",
    ):
        for read in (parse_proof, lambda c: verify_opened_proof(c, policy=policy)):
            try:
                read(candidate)
            except (ProofError, NoteError):
                continue


def test_every_flipped_bit_of_a_proof_is_refused(
    log: Log, proofs: tuple[str, str], policy: TrustPolicy
) -> None:
    leaf = log.entry(0).leaf
    reads: list[tuple[str, Callable[[str], object]]] = [
        (proofs[0], lambda text: verify_proof(text, leaf=leaf, policy=policy)),
        (proofs[1], lambda text: verify_opened_proof(text, policy=policy)),
    ]
    for text, read in reads:
        data = text.encode()
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises((ProofError, NoteError)):
                read(flipped.decode(errors="surrogateescape"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("@v1", "@v2"),
            "a proof must begin with 'c2sp.org/tlog-proof@v1'",
        ),
        (
            lambda text: text.partition("\n\n")[0],
            "a proof must begin with .* end with a checkpoint",
        ),
        (lambda text: text.replace("index 0", "index x"), "must have a line with the index of its"),
        (lambda text: text.replace("index 0\n", "index 0\nAAAA\n"), "must be 32 bytes in base64"),
        (
            lambda text: text.replace("index 0\n", "index 0\n?\n"),
            "a line of the proof is not base64",
        ),
        (
            lambda text: text.replace("index 0", "index 00"),
            "must be in its only canonical spelling",
        ),
        (lambda text: text.replace("index 0", "index 9223372036854775808"), r"in \[0, 2\^63\)"),
        (
            lambda text: text.replace("index 0", "index 1"),
            "inclusion proof of entry 1 leads to anot",
        ),
        (
            lambda text: text.replace("index 0\n", "index 0\n" + ("A" * 43 + "=\n") * 64),
            "a proof must hold at most 63 hashes",
        ),
        (lambda text: text + " " * (1 << 24), "a proof must have at most 16777216 bytes"),
    ],
)
def test_a_changed_proof_is_refused(
    log: Log,
    proofs: tuple[str, str],
    policy: TrustPolicy,
    change: Callable[[str], str],
    message: str,
) -> None:
    with pytest.raises(ProofError, match=message):
        verify_proof(change(proofs[0]), leaf=log.entry(0).leaf, policy=policy)


def test_a_proof_without_an_opening_opens_nothing(
    proofs: tuple[str, str], policy: TrustPolicy
) -> None:
    with pytest.raises(ProofError, match="must carry a salt and the content"):
        verify_opened_proof(proofs[0], policy=policy)
    no_event = proofs[0].replace("\nindex", "\nextra " + "A" * 60 + "\nindex")
    with pytest.raises(ProofError, match="the proof opens no event"):
        verify_opened_proof(no_event, policy=policy)


def test_an_entry_after_the_newest_note_waits(log: Log, proofs: tuple[str, str]) -> None:
    with pytest.raises(LogError, match="the newest note covers 6 entries, not entry 6"):
        prove(log, 6)
