import hashlib
import hmac
import json
import runpy
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from privacy import (
    AgreementKey,
    MemberCard,
    Party,
    Roster,
    RosterError,
    Session,
    SumRefused,
    make_card,
    total,
)

FOLDER = Path(__file__).parents[1] / "vectors" / "secure_sum"
VECTORS = sorted(FOLDER.glob("*.json"))
HEADER_BYTES = 80
NAMES = tuple(f"brand-{number:02d}" for number in range(50))


def signer(key: Ed25519PrivateKey) -> Callable[[str, bytes], bytes]:
    """Sign as an identity does: the context first, then a zero byte."""
    return lambda context, message: key.sign(f"tillpact/{context}\0".encode() + message)


def card(name: str, key: AgreementKey) -> MemberCard:
    identity = Ed25519PrivateKey.generate()
    public = identity.public_key().public_bytes_raw()
    return make_card(name, signer(identity), identity=public, agreement=key.public)


KEYS = {name: AgreementKey.generate() for name in NAMES}
ROSTER = Roster([card(name, key) for name, key in KEYS.items()])
PARTIES = {name: Party(name, key, ROSTER) for name, key in KEYS.items()}


def session_for(
    run: str, cohort: tuple[str, ...], *, dimension: int, ring_bits: Literal[16, 32, 64] = 32
) -> Session:
    return Session(
        run=run,
        round=0,
        attempt=0,
        cohort=cohort,
        terms_digest=bytes(32),
        dimension=dimension,
        ring_bits=ring_bits,
    )


def read_session(fields: dict[str, Any]) -> Session:
    lists = {
        "cohort": tuple(fields["cohort"]),
        "terms_digest": bytes.fromhex(fields["terms_digest"]),
    }
    return Session(**fields | lists)


def run_step(case: dict[str, Any]) -> str | list[int] | None:
    if case["step"] == "parse":
        Roster.parse(case["roster"].encode())
        return None
    if case["step"] == "total":
        sent = {name: bytes.fromhex(data) for name, data in case["contributions"].items()}
        return total(read_session(case["session"]), sent).tolist()
    me = case["party"]
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(me["agreement"]))
    roster = Roster.parse(case["roster"].encode())
    party = Party(me["name"], AgreementKey(private), roster, floor=me["floor"])
    for earlier in [*case["before"], case]:
        values = np.array(earlier["values"], dtype=np.int64)
        sent = party.mask(read_session(earlier["session"]), values, max_abs=case["max_abs"])
    return sent.hex()


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_secure_sum_vectors(path: Path) -> None:
    """Each file is one case, named after its fault; `why` says it in words."""
    case = json.loads(path.read_text())

    if case["refused"]:
        with pytest.raises((SumRefused, RosterError)) as refusal:
            run_step(case)
        assert str(refusal.value) == case["refused"]
    else:
        assert run_step(case) == case.get("contribution", case.get("total"))


def test_the_vectors_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "make.py"))
    cases, format_case = script["cases"](), script["format_case"]

    assert {path.stem for path in VECTORS} == set(cases)
    for path in VECTORS:
        assert path.read_text() == format_case(cases[path.stem])


def field(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def test_a_mask_is_what_the_documents_say_computed_another_way() -> None:
    """RFC 5869 by hand from HMAC, and counter mode by hand from AES blocks."""
    case = json.loads((FOLDER / "happy_mask.json").read_text())
    roster = Roster.parse(case["roster"].encode())
    session = case["session"]
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["party"]["agreement"]))
    cohort = b"".join(field(name.encode()) for name in session["cohort"])
    info = b"".join(
        field(part)
        for part in (
            *(str(session[name]).encode() for name in ("run", "round", "attempt")),
            cohort,
            bytes.fromhex(session["terms_digest"]),
            str(session["dimension"]).encode(),
            str(session["ring_bits"]).encode(),
        )
    )
    words = list(case["values"])
    for peer in roster.cards:
        if peer.name in ("cedar", "maple"):
            secret = private.exchange(X25519PublicKey.from_public_bytes(peer.agreement))
            pseudorandom = hmac.digest(
                hashlib.sha256(case["roster"].encode()).digest(), secret, "sha256"
            )
            seed = hmac.digest(pseudorandom, info + b"\x01", "sha256")
            aes = Cipher(algorithms.AES256(seed), modes.ECB()).encryptor()  # noqa: S305
            block = aes.update(bytes(16))
            for place in range(3):
                words[place] += int.from_bytes(block[4 * place : 4 * place + 4], "little")

    body = b"".join((word % 2**32).to_bytes(4, "little") for word in words)

    assert bytes.fromhex(case["contribution"])[HEADER_BYTES:] == body


@given(st.data())
@settings(max_examples=25)
def test_masks_cancel_for_any_cohort_and_any_values(data: st.DataObject) -> None:
    cohort = tuple(sorted(data.draw(st.sets(st.sampled_from(NAMES), min_size=3, max_size=12))))
    ring_bits = data.draw(st.sampled_from([16, 32, 64]))
    max_abs = (2 ** (ring_bits - 1) - 1) // len(cohort)
    numbers = st.integers(-max_abs, max_abs)
    lists = st.lists(numbers, min_size=5, max_size=5)
    values = {name: np.array(data.draw(lists), dtype=np.int64) for name in cohort}
    session = session_for(f"any-{data.draw(st.uuids())}", cohort, dimension=5, ring_bits=ring_bits)

    parties = {name: Party(name, KEYS[name], ROSTER) for name in cohort}
    sent = {
        name: party.mask(session, values[name], max_abs=max_abs) for name, party in parties.items()
    }

    assert total(session, sent).tolist() == sum(values.values()).tolist()


def test_the_largest_cohort_adds_up() -> None:
    session = session_for("largest", NAMES, dimension=3, ring_bits=64)
    values = np.array([1, -2, 10**9])

    sent = {name: party.mask(session, values, max_abs=10**9) for name, party in PARTIES.items()}

    assert total(session, sent).tolist() == [50, -100, 50 * 10**9]


def body(party: Party, session: Session, values: NDArray[np.int64]) -> bytes:
    return party.mask(session, values, max_abs=10**6)[HEADER_BYTES:]


def test_a_single_contribution_is_uniform_whatever_it_hides() -> None:
    """Chi-squared over byte values; false alarm for one set of keys in a million."""
    zeros = np.zeros(100_000, dtype=np.int64)
    session = session_for("uniform", NAMES[:3], dimension=zeros.size)

    seen = np.bincount(
        np.frombuffer(body(PARTIES[NAMES[1]], session, zeros), dtype=np.uint8), minlength=256
    )

    expected = seen.sum() / 256
    assert chi2.sf(((seen - expected) ** 2 / expected).sum(), 255) > 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "other"},
        {"round": 1},
        {"attempt": 1},
        {"cohort": NAMES[:4]},
        {"terms_digest": bytes([1]) * 32},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_equal_values_in_two_sessions_share_nothing(changes: dict[str, Any]) -> None:
    values = np.full(2_000, 7)
    fields = {
        "run": "same",
        "round": 0,
        "attempt": 0,
        "cohort": NAMES[:3],
        "terms_digest": bytes(32),
        "dimension": 2_000,
        "ring_bits": 64,
    }

    one = np.frombuffer(
        body(Party(NAMES[0], KEYS[NAMES[0]], ROSTER), Session(**fields), values), dtype="<u8"
    )
    other = np.frombuffer(
        body(Party(NAMES[0], KEYS[NAMES[0]], ROSTER), Session(**fields | changes), values),
        dtype="<u8",
    )

    assert not np.intersect1d(one, other).size
    assert not np.intersect1d(one - other, one + other).size


def test_all_others_together_learn_the_last_value_as_the_docs_admit() -> None:
    session = session_for("collusion", NAMES[:3], dimension=1)
    sent = {name: PARTIES[name].mask(session, np.array([42]), max_abs=100) for name in NAMES[:3]}

    assert total(session, sent)[0] - 2 * 42 == 42


def test_a_party_refuses_values_that_are_not_integers() -> None:
    session = session_for("floats", NAMES[:3], dimension=2)

    with pytest.raises(SumRefused, match="values must be int64, got float64; nothing was masked"):
        PARTIES[NAMES[0]].mask(session, np.ones(2), max_abs=10)  # type: ignore[arg-type]


def test_a_key_without_a_secret_is_refused() -> None:
    identity = Ed25519PrivateKey.generate()
    weak = make_card(
        "weak",
        signer(identity),
        identity=identity.public_key().public_bytes_raw(),
        agreement=bytes(32),
    )
    roster = Roster([weak, *ROSTER.cards[:2]])
    session = session_for("weak", (*NAMES[:2], "weak"), dimension=1)

    with pytest.raises(SumRefused, match="the agreement key of weak gives no secret"):
        Party(NAMES[0], KEYS[NAMES[0]], roster).mask(session, np.array([1]), max_abs=10)


def test_a_party_refuses_a_floor_below_three_and_a_roster_without_its_key() -> None:
    with pytest.raises(ValueError, match="floor must be at least 3, got 2"):
        Party(NAMES[0], KEYS[NAMES[0]], ROSTER, floor=2)
    with pytest.raises(RosterError, match="the roster does not pin this agreement key for brand"):
        Party(NAMES[0], KEYS[NAMES[1]], ROSTER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "run must not be empty"),
        ({"round": -1}, "round and attempt must be at least 0, got -1 and 0"),
        ({"cohort": ()}, "a cohort has 1 to 50 members, got 0"),
        ({"cohort": (*NAMES, "z")}, "a cohort has 1 to 50 members, got 51"),
        ({"cohort": ("b", "a", "c")}, "a cohort must be sorted and name each member once"),
        ({"cohort": ("a", "a", "c")}, "a cohort must be sorted and name each member once"),
        ({"terms_digest": b""}, "terms_digest must have 32 bytes, got 0"),
        ({"dimension": 0}, r"dimension must be in \[1, 2\^27\], got 0"),
        ({"ring_bits": 8}, "ring_bits must be 16, 32 or 64, got 8"),
    ],
)
def test_a_session_that_is_not_well_formed_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    fields = json.loads((FOLDER / "happy_total.json").read_text())["session"]
    good = read_session(fields)
    values = {name: getattr(good, name) for name in fields}

    with pytest.raises(ValueError, match=message):
        Session(**values | changes)


@given(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
@settings(max_examples=20)
def test_a_roster_is_the_same_in_whatever_order_it_was_given(names: list[str]) -> None:
    cards = [one for one in ROSTER.cards if one.name in names]

    roster = Roster(reversed(cards))

    assert roster == Roster(cards)
    assert Roster.parse(roster.format()) == roster
    assert roster.digest == hashlib.sha256(roster.format()).digest()


@given(st.one_of(st.binary(min_size=1), st.text(min_size=1).map(str.encode)))
def test_garbage_is_no_roster(data: bytes) -> None:
    with pytest.raises(RosterError):
        Roster.parse(data)


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=100)
def test_a_roster_with_one_changed_byte_is_refused(place: int, change: int) -> None:
    data = bytearray(Roster(ROSTER.cards[:3]).format())
    data[place % len(data)] ^= change

    with pytest.raises(RosterError):
        Roster.parse(bytes(data))


@pytest.mark.parametrize("name", ["", " birch", "bir\nch", "x" * 65, "e\u0301clair"])
def test_a_name_that_people_cannot_compare_is_refused(name: str) -> None:
    with pytest.raises(RosterError, match="a name must be 1 to 64 printable characters"):
        card(name, KEYS[NAMES[0]])


def test_names_in_any_language_are_fine() -> None:
    assert card("优衣 集团", KEYS[NAMES[0]]).name == "优衣 集团"


def test_nobody_signs_a_card_with_another_members_identity() -> None:
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

    with pytest.raises(RosterError, match="the card of birch is not signed by its own key"):
        make_card(
            "birch",
            signer(Ed25519PrivateKey.generate()),
            identity=public,
            agreement=KEYS[NAMES[0]].public,
        )


def test_a_saved_key_is_for_its_owner_only_and_loads_again(tmp_path: Path) -> None:
    key, path = AgreementKey.generate(), tmp_path / "agreement.pem"

    key.save(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert AgreementKey.load(path).public == key.public
    assert "private" not in repr(key)
    with pytest.raises(RosterError, match=r"no agreement key can be written to .*File exists"):
        AgreementKey.generate().save(path)
    assert AgreementKey.load(path).public == key.public


def test_a_key_file_that_is_open_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agreement.pem"
    with pytest.raises(RosterError, match="no agreement key can be read from"):
        AgreementKey.load(path)
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    path.chmod(0o600)
    with pytest.raises(RosterError, match="no agreement key can be read from"):
        AgreementKey.load(path)
    path.chmod(0o640)
    with pytest.raises(RosterError, match=r"is open to other users; chmod it to 600"):
        AgreementKey.load(path)


def test_masking_does_not_change_the_values_passed_in() -> None:
    values = np.arange(3)
    session = session_for("untouched", NAMES[:3], dimension=3, ring_bits=64)

    PARTIES[NAMES[0]].mask(session, values, max_abs=10)

    assert values.tolist() == [0, 1, 2]
