import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.identity import Identity, IdentityError, PublicIdentity, SignatureError

MINE = Identity.generate("brand-a.example/log")


def test_a_saved_key_loads_as_the_same_identity(tmp_path: Path) -> None:
    MINE.save(tmp_path / "key")

    assert Identity.load(tmp_path / "key").public == MINE.public
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_save_never_overwrites_a_key(tmp_path: Path) -> None:
    MINE.save(tmp_path / "key")

    with pytest.raises(IdentityError, match="exists and was not overwritten"):
        Identity.generate("other").save(tmp_path / "key")
    assert Identity.load(tmp_path / "key").public == MINE.public


def test_save_names_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot be written"):
        MINE.save(tmp_path / "missing" / "key")


def test_load_refuses_a_key_that_others_can_read(tmp_path: Path) -> None:
    MINE.save(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)

    with pytest.raises(IdentityError, match="must be readable by its owner only"):
        Identity.load(tmp_path / "key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not hold a private key"),
        (MINE.public.format(), "does not hold a private key"),
        ("PRIVATE+KEY+a+b", "must read name\\+hash\\+base64"),
        ("PRIVATE+KEY+a+00000000+AQ==", "does not hold an Ed25519 key"),
        ("PRIVATE+KEY+a+00000000+AQAA" + "AAAA" * 10 + "AA==", "does not hold an Ed25519 key"),
        (
            "PRIVATE+KEY+a+00000000+A" + "QAAA" + "AAAA" * 9 + "AAAAAAA=",
            r"does not hold an Ed25519|its hash",
        ),
    ],
)
def test_load_refuses_what_is_no_key_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(IdentityError, match=message):
        Identity.load(path)


def test_load_refuses_a_key_under_another_name(tmp_path: Path) -> None:
    MINE.save(tmp_path / "key")
    text = (tmp_path / "key").read_text()
    (tmp_path / "key").write_text(text.replace("brand-a", "brand-b"))

    with pytest.raises(IdentityError, match="its hash is of another key"):
        Identity.load(tmp_path / "key")


def test_load_names_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        Identity.load(tmp_path / "key")


def test_a_signature_counts_in_its_own_context_only() -> None:
    signature = MINE.sign("plan", b"message")

    MINE.public.verify("plan", b"message", signature)
    with pytest.raises(SignatureError, match=r"is not one of brand-a.example/log"):
        MINE.public.verify("contribution", b"message", signature)


@pytest.mark.parametrize(("context", "message"), [("plan", b"other"), ("plan", b"")])
def test_a_signature_counts_for_its_own_message_only(context: str, message: bytes) -> None:
    with pytest.raises(SignatureError):
        MINE.public.verify(context, message, MINE.sign("plan", b"message"))


def test_a_signed_note_never_passes_for_a_signed_message() -> None:
    with pytest.raises(ValueError, match="must not hold a zero byte"):
        MINE.sign_text(b"tillpact/plan\0message")


def test_sign_refuses_a_context_that_could_end_early() -> None:
    with pytest.raises(ValueError, match="a signing context must be printable ASCII"):
        MINE.sign("plan\0", b"message")


def test_both_verifier_keys_read_back() -> None:
    public = MINE.public

    assert PublicIdentity.parse(public.format()) == public
    assert PublicIdentity.parse_witness(public.format_witness()) == public
    assert PublicIdentity.parse_witness(public.format()) == public
    assert len(public.fingerprint) == 16


def test_the_verifier_key_of_the_go_note_package() -> None:
    # golang.org/x/mod/sumdb/note, example_test.go: PeterNeumann+c74f20a3.
    key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

    assert PublicIdentity.parse(key).name == "PeterNeumann"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "must read name\\+hash\\+base64"),
        ("a+00000000+***", "must end in base64"),
        ("a+00000000+", "must hold a key"),
        ("a+00000000+AQEB", "a public key must have 32 bytes, got 2"),
        (MINE.public.format_witness(), "must be Ed25519, got type 0x04"),
        (MINE.public.format().replace("brand-a", "brand-b"), "must carry the hash of its own"),
        ("a b+00000000+AQ==", "must be printable and hold no space"),
    ],
)
def test_parse_refuses_what_is_no_verifier_key(text: str, message: str) -> None:
    if text.startswith("a b"):
        text = "a b" + MINE.public.format().removeprefix("brand-a.example/log")
    with pytest.raises(IdentityError, match=message):
        PublicIdentity.parse(text)


@given(st.text(max_size=60))
def test_garbage_raises_only_an_identity_error(text: str) -> None:
    with pytest.raises(IdentityError):
        PublicIdentity.parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "a\u00a0b", "\u200b"])
def test_a_name_must_fit_in_a_note(name: str) -> None:
    with pytest.raises(IdentityError, match="a name must be printable"):
        Identity.generate(name)


def test_a_name_must_have_one_spelling() -> None:
    with pytest.raises(IdentityError, match="a name must be in Unicode normal form C"):
        Identity.generate("cafe\u0301")


def test_an_identity_never_shows_its_private_key() -> None:
    assert "PRIVATE" not in repr(MINE)
