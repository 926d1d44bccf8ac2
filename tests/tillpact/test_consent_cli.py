import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors" / "receipt"

Files = dict[str, Path]


def tillpact(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tillpact", *map(str, arguments)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write what a customer and a consortium hold, each as a file of its own."""
    cases = {
        name: json.loads((VECTORS / f"{name}.json").read_text())
        for name in ("happy-pending", "happy-final", "signature-flipped", "proof-not-cosigned")
    }
    made = {name: tmp_path / f"{name}.jwt" for name in cases}
    for name, case in cases.items():
        made[name].write_text(case["receipt"] + "\n")
    made["issuer"], made["policy"] = tmp_path / "issuer.vkey", tmp_path / "trust.policy"
    made["issuer"].write_text(cases["happy-final"]["issuer"] + "\n")
    made["policy"].write_text(cases["happy-final"]["policy"])
    made["out"] = tmp_path / "page.html"
    return made


def verify(files: Files, name: str, *more: object) -> subprocess.CompletedProcess[str]:
    return tillpact("consent", "receipt", "verify", files[name], "--issuer", files["issuer"], *more)


def test_a_final_receipt_is_verified_with_the_quorum(files: Files) -> None:
    done = verify(files, "happy-final", "--policy", files["policy"])

    assert done.returncode == 0, done.stderr
    assert "was signed by brand-a.example/log." in done.stdout
    assert "Given: contact, recommendation." in done.stdout
    assert "Refused: churn_scoring." in done.stdout
    assert "Final: entry 3 of the log says the same, and the quorum saw it." in done.stdout


def test_a_final_receipt_without_a_policy_says_that_no_witness_was_asked(files: Files) -> None:
    done = verify(files, "happy-final")

    assert done.returncode == 0, done.stderr
    assert "no witness was asked for" in done.stdout


def test_a_pending_receipt_is_verified_and_says_so(files: Files) -> None:
    done = verify(files, "happy-pending")

    assert done.returncode == 0, done.stderr
    assert "Pending: the log does not prove it yet" in done.stdout


def test_machines_get_one_document_without_the_secret(files: Files) -> None:
    done = verify(files, "happy-final", "--policy", files["policy"], "--json")
    document = json.loads(done.stdout)

    assert document["schema"] == "tillpact.consent.receipt.verify/1"
    assert document["data"]["verified"] is True
    assert document["data"]["status"] == "final"
    assert set(document["data"]["given"]) == {"contact", "recommendation"}
    assert "k" * 43 not in done.stdout


@pytest.mark.parametrize(
    ("name", "policy", "sentence"),
    [
        ("signature-flipped", None, "the signature on the receipt is not one of"),
        ("proof-not-cosigned", "policy", "cosigned by nobody"),
    ],
)
def test_a_receipt_that_does_not_hold_exits_one(
    files: Files,
    name: str,
    policy: str | None,
    sentence: str,
) -> None:
    more = [] if policy is None else ["--policy", files[policy]]
    done = verify(files, name, "--json", *more)

    assert done.returncode == 1
    assert done.stderr.startswith("Does not match: ")
    assert sentence in done.stderr
    assert json.loads(done.stdout)["data"]["verified"] is False


@pytest.mark.parametrize(
    "garble",
    [lambda data: b"\xff" + data[1:], lambda data: data * 400, lambda data: data + b"\n"],
    ids=["no text", "huge", "one more line"],
)
def test_a_garbled_file_is_a_receipt_that_does_not_hold(
    files: Files, garble: Callable[[bytes], bytes]
) -> None:
    path = files["happy-pending"]
    path.write_bytes(garble(path.read_bytes()))

    done = verify(files, "happy-pending")

    assert done.returncode == 1
    assert done.stderr.startswith("Does not match: ")


@pytest.mark.parametrize(
    ("break_", "sentence"),
    [
        (lambda files: files["happy-final"].unlink(), "cannot be read; nothing was verified"),
        (lambda files: files["issuer"].unlink(), "cannot be read; nothing was verified"),
        (lambda files: files["policy"].write_bytes(b"\xff"), "cannot be read; nothing was"),
        (lambda files: files["issuer"].write_text("a key"), "must read name+hash+base64"),
        (lambda files: files["policy"].write_text("trust me"), "line 1 of the trust policy"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_and_exit_two(
    files: Files, break_: Callable[[Files], object], sentence: str
) -> None:
    break_(files)

    done = verify(files, "happy-final", "--policy", files["policy"])

    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("lang", "first"), [("en", "en"), ("zh", "zh-Hans")])
def test_a_page_is_written_with_the_language_asked_for_first(
    files: Files, lang: str, first: str
) -> None:
    out = files["out"]
    done = tillpact(
        *("consent", "receipt", "page", files["happy-final"]),
        *("--issuer", files["issuer"], "-o", out, "--lang", lang),
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Page: {out}\n"
    page = out.read_text()
    assert f'<html lang="{first}">' in page
    assert "What you agreed to" in page
    assert "您的同意回执" in page


def test_no_page_is_written_of_a_receipt_that_does_not_hold(files: Files) -> None:
    done = tillpact(
        *("consent", "receipt", "page", files["signature-flipped"]),
        *("--issuer", files["issuer"], "-o", files["out"]),
    )

    assert done.returncode == 1
    assert "no page was written" in done.stderr
    assert not files["out"].exists()


def test_an_unknown_language_is_a_usage_error(files: Files) -> None:
    done = tillpact(
        *("consent", "receipt", "page", files["happy-final"]),
        *("--issuer", files["issuer"], "-o", files["out"], "--lang", "fr"),
    )

    assert done.returncode == 2
