import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from phe import paillier as phe

from privacy import Budget, BudgetExhausted, Ledger, Replayed
from privacy.paillier import (
    KEY_BITS,
    PURPOSE,
    Auditor,
    CountRefused,
    Encryptor,
    KeyFileError,
    PrivateKey,
    PublicKey,
    Question,
    contribute,
)

NAMES = ("amber", "birch", "cedar", "dogwood")
CELLS = 150
SIGNERS = {name: Ed25519PrivateKey.generate() for name in NAMES}
COUNTS = {
    name: np.random.default_rng(place).integers(0, 1001, CELLS) for place, name in enumerate(NAMES)
}


def sign_as(name: str) -> Callable[[str, bytes], bytes]:
    return lambda context, message: SIGNERS[name].sign(
        b"tillpact/" + context.encode() + b"\0" + message
    )


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture(scope="module")
def encryptor(key: PrivateKey) -> Encryptor:
    return Encryptor(key.public)


@pytest.fixture(scope="module")
def question(key: PrivateKey) -> Question:
    return Question(
        id="visits by hour, week 47",
        cells=CELLS,
        largest=1000,
        members={name: SIGNERS[name].public_key().public_bytes_raw() for name in NAMES},
        min_contributors=3,
        sensitivity=1.0,
        noise_std=30.0,
        auditor=key.public.fingerprint,
    )


@pytest.fixture(scope="module")
def contributions(question: Question, encryptor: Encryptor) -> dict[str, bytes]:
    return {
        name: contribute(COUNTS[name], question, encryptor, name=name, sign=sign_as(name))
        for name in NAMES
    }


@pytest.fixture
def auditor(tmp_path: Path, key: PrivateKey) -> Iterator[Auditor]:
    budget = Budget(epsilon=1.0, delta=1e-6)
    with Auditor(key, Ledger.create(tmp_path / "ledger", {PURPOSE: budget})) as auditor:
        yield auditor


def forged(values: list[int], question: Question, encryptor: Encryptor, name: str) -> bytes:
    """A contribution whose plaintexts are of the test's choice."""
    honest = contribute(
        np.zeros(CELLS, np.int64), question, encryptor, name=name, sign=sign_as(name)
    )
    size = KEY_BITS // 4 * question.ciphertexts
    message = honest[honest.index(b"\n") + 1 : -64 - size] + b"".join(
        encryptor.encrypt(value).to_bytes(KEY_BITS // 4, "big") for value in values
    )
    signature = SIGNERS[name].sign(b"tillpact/audited-count/v1\0" + message)
    return honest[: honest.index(b"\n") + 1] + message + signature


def test_an_answer_is_the_sum_with_noise_and_is_given_once(
    auditor: Auditor, question: Question, contributions: dict[str, bytes]
) -> None:
    exact = sum(COUNTS.values(), np.zeros(CELLS, np.int64))

    answer = auditor.answer(question, list(contributions.values()))
    again = auditor.answer(question, list(reversed(contributions.values())))

    error = answer - exact
    np.testing.assert_array_equal(answer, again)
    # A standard deviation over 150 draws is off by more than a third once in ten million times.
    assert 20 < error.std() < 40
    assert abs(error.mean()) < 6 * 30 / math.sqrt(CELLS)


def test_late_members_are_left_out_and_the_question_is_not_asked_twice(
    auditor: Auditor, question: Question, contributions: dict[str, bytes]
) -> None:
    three = [contributions[name] for name in NAMES[:3]]
    answer = auditor.answer(question, three)

    exact = sum((COUNTS[name] for name in NAMES[:3]), np.zeros(CELLS, np.int64))
    assert abs(answer - exact).max() < 30 * 8
    with pytest.raises(Replayed, match="was reserved for another request"):
        auditor.answer(question, list(contributions.values()))


def test_what_is_not_agreed_is_refused_before_anything_is_decrypted(
    auditor: Auditor,
    question: Question,
    encryptor: Encryptor,
    contributions: dict[str, bytes],
) -> None:
    amber, birch, cedar, dogwood = (contributions[name] for name in NAMES)
    other = dataclasses.replace(question, id="visits by hour, week 48")
    elsewhere = contribute(COUNTS["cedar"], other, encryptor, name="cedar", sign=sign_as("cedar"))
    stolen = contribute(COUNTS["cedar"], question, encryptor, name="cedar", sign=sign_as("amber"))
    zero = forged([0, 0], question, encryptor, "cedar")
    size = KEY_BITS // 4
    message = zero[zero.index(b"\n") + 1 : -64 - 2 * size] + bytes(2 * size)
    nothing = (
        zero[: zero.index(b"\n") + 1]
        + message
        + SIGNERS["cedar"].sign(b"tillpact/audited-count/v1\0" + message)
    )
    cases = [
        ([amber, birch], "2 members contributed, the question needs 3; nothing was decrypted"),
        ([amber, birch, birch], "a member contributed twice"),
        ([amber, birch, elsewhere], "of no member, for another question, or of another shape"),
        ([amber, birch, stolen], "the contribution of cedar is not signed by its key"),
        ([amber, birch, cedar[:-700]], "of no member, for another question, or of another shape"),
        ([amber, birch, b"anything"], "a contribution cannot be read"),
        ([amber, birch, nothing], "the contribution of cedar holds what is no ciphertext"),
    ]

    for given_, message_ in cases:
        with pytest.raises(CountRefused, match=message_):
            auditor.answer(question, given_)
    foreign = dataclasses.replace(question, auditor="ab" * 32)
    with pytest.raises(CountRefused, match="the question is for another auditor's key"):
        auditor.answer(foreign, [amber, birch, dogwood])
    assert auditor._ledger.spent(PURPOSE).releases == 0


@pytest.mark.parametrize("lie", ["one slot", "all slots", "below zero"])
def test_an_impossible_sum_is_refused(
    auditor: Auditor,
    question: Question,
    encryptor: Encryptor,
    contributions: dict[str, bytes],
    lie: str,
) -> None:
    plaintext = {
        "one slot": 1 << question.slot_bits - 1,
        "all slots": (1 << KEY_BITS - 2),
        "below zero": encryptor.key.n - 5000,
    }[lie]
    bad = forged([plaintext, 0], question, encryptor, "cedar")

    with pytest.raises(CountRefused, match="larger than the members could have said together"):
        auditor.answer(question, [contributions["amber"], contributions["birch"], bad])


def test_an_exhausted_budget_decrypts_nothing(
    tmp_path: Path, key: PrivateKey, question: Question, contributions: dict[str, bytes]
) -> None:
    budget = Budget(epsilon=0.01, delta=1e-9)
    ledger = Ledger.create(tmp_path / "ledger", {PURPOSE: budget})
    with Auditor(key, ledger) as auditor, pytest.raises(BudgetExhausted):
        auditor.answer(question, list(contributions.values()))


@given(st.integers(0, 2**3000))
@settings(max_examples=20)
def test_our_ciphertexts_are_paillier_of_another_library(
    key: PrivateKey, encryptor: Encryptor, plaintext: int
) -> None:
    """Phe reads what we encrypt, and we read what phe encrypts."""
    public = phe.PaillierPublicKey(key.public.n)

    assert key.decrypt(encryptor.encrypt(plaintext)) == plaintext
    assert key.decrypt(public.raw_encrypt(plaintext)) == plaintext


def test_two_encryptions_of_one_number_differ_also_from_the_pool(
    key: PrivateKey, encryptor: Encryptor
) -> None:
    encryptor.prepare(3)
    ciphertexts = {encryptor.encrypt(7) for _ in range(6)}

    assert len(ciphertexts) == 6
    assert {key.decrypt(ciphertext) for ciphertext in ciphertexts} == {7}
    with pytest.raises(ValueError, match=r"a plaintext must be in \[0, n\)"):
        encryptor.encrypt(-1)


def test_a_key_is_kept_for_its_owner_alone(tmp_path: Path, key: PrivateKey) -> None:
    path = tmp_path / "auditor.key"
    key.save(path)

    assert PrivateKey.load(path).public == key.public
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="cannot be written"):
        key.save(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by others than its owner"):
        PrivateKey.load(path)
    other = tmp_path / "other"
    other.touch(mode=0o600)
    for text in ("", "7\n11\n", "x\ny\n"):
        other.write_text(text)
        with pytest.raises(KeyFileError, match="holds no auditor's key"):
            PrivateKey.load(other)
    with pytest.raises(KeyFileError, match="there is no readable key"):
        PrivateKey.load(tmp_path / "nowhere")
    assert PublicKey.parse(key.public.format()) == key.public
    for text in ("", "12\n", key.public.format().upper(), key.public.format() * 2):
        with pytest.raises(ValueError, match=r"auditor's|invalid literal"):
            PublicKey.parse(text)


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.integers()).map(json.dumps)))
def test_garbage_is_no_question(text: str) -> None:
    with pytest.raises(CountRefused, match="the question cannot be read"):
        Question.parse(text)


def test_a_question_survives_being_written_and_read(question: Question) -> None:
    assert Question.parse(question.format()) == question
    assert Question.parse(question.format() + "\n").digest == question.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "the id of a question must be 1 to 100 printable characters"),
        ({"cells": 0}, "cells must be 1 to 1000, got 0"),
        ({"largest": 2**40}, "largest must be 1 to 2\\^40 - 1, got 1099511627776"),
        ({"min_contributors": 2}, "min_contributors must be 3 to the 4 members, got 2"),
        ({"min_contributors": 5}, "min_contributors must be 3 to the 4 members, got 5"),
        ({"noise_std": 5.0}, "noise_std must be finite and at least 30"),
        (
            {"members": dict.fromkeys(NAMES, bytes(32))},
            "two members of a question have the same key",
        ),
    ],
)
def test_a_question_refuses_what_cannot_be_kept(
    question: Question, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(question, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        (np.zeros(CELLS, np.int64), "elm", "'elm' is no member of the question"),
        (np.zeros(3, np.int64), "amber", "values must have shape"),
        (np.full(CELLS, 1001), "amber", r"each value must be in \[0, 1000\]"),
        (np.full(CELLS, -1), "amber", r"each value must be in \[0, 1000\]"),
    ],
)
def test_a_member_says_only_what_was_asked(
    question: Question,
    encryptor: Encryptor,
    values: NDArray[np.int64],
    name: str,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        contribute(values, question, encryptor, name=name, sign=sign_as("amber"))
    foreign = dataclasses.replace(question, auditor="ab" * 32)
    with pytest.raises(ValueError, match="the question is for another auditor's key"):
        contribute(values, foreign, encryptor, name=name, sign=sign_as("amber"))


def test_the_auditor_works_from_the_command_line(tmp_path: Path) -> None:
    def tillpact(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tillpact", "auditor", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    folder = tmp_path / "auditor"
    made = tillpact("keygen", folder, "--json")
    public = PublicKey.parse((folder / "auditor.pub").read_text())
    assert json.loads(made.stdout)["data"]["fingerprint"] == public.fingerprint
    question = Question(
        id="orders",
        cells=2,
        largest=500,
        members={name: SIGNERS[name].public_key().public_bytes_raw() for name in NAMES},
        min_contributors=3,
        sensitivity=1.0,
        noise_std=60.0,
        auditor=public.fingerprint,
    )
    (tmp_path / "question.json").write_text(question.format())
    files = []
    for name in NAMES[:3]:
        data = contribute(
            np.array([100, 200]), question, Encryptor(public), name=name, sign=sign_as(name)
        )
        files.append(tmp_path / name)
        files[-1].write_bytes(data)

    answered = tillpact("decrypt", folder, tmp_path / "question.json", *files)
    again = tillpact("decrypt", folder, tmp_path / "question.json", *files, "--json")
    refused = tillpact("decrypt", folder, tmp_path / "question.json", *files[:2])
    twice = tillpact("keygen", folder)

    assert answered.returncode == 0, answered.stderr
    sums = [int(word) for word in answered.stdout.splitlines()[-1].split()]
    assert np.abs(np.array(sums) - [300, 600]).max() < 60 * 7
    assert json.loads(again.stdout)["data"]["sums"] == sums
    assert (refused.returncode, twice.returncode) == (1, 2)
    assert "the question needs 3; nothing was decrypted" in refused.stderr
    assert "cannot be made" in twice.stderr
