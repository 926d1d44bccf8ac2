from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.identity import Identity
from consent.note import NoteError
from consent.trust import TrustPolicy

LOG = Identity.generate("brand-a.example/log").public.format()
KEYS = [Identity.generate(f"w{number}").public.format_witness() for number in range(6)]
# The example of https://c2sp.org/tlog-policy, with keys.
EXAMPLE = f"""
log {LOG} https://brand-a.example

witness X1 {KEYS[0]}
witness X2 {KEYS[1]}
witness\tX3   {KEYS[2]}
group X-witnesses 2 X1 X2 X3
  # half of them belong to somebody else
witness Y1 {KEYS[3]}
witness Y2 {KEYS[4]}
witness Y3 {KEYS[5]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def test_the_example_of_the_specification_counts_as_it_says() -> None:
    policy = TrustPolicy.parse(EXAMPLE)
    names = list(policy.witnesses)

    for size in range(7):
        for cosigners in combinations(names, size):
            x = sum(name.startswith("X") for name in cosigners)
            y = sum(name.startswith("Y") for name in cosigners)
            assert policy.is_quorum(cosigners) == (x >= 2 and y >= 1)


def test_a_policy_reads_back_as_it_was() -> None:
    policy = TrustPolicy.parse(EXAMPLE)

    assert TrustPolicy.parse(policy.format()) == policy


def test_no_quorum_needs_nobody() -> None:
    assert TrustPolicy.parse(f"log {LOG}\nquorum none\n").is_quorum([])


@given(st.text(max_size=60))
def test_garbage_raises_only_a_note_error(text: str) -> None:
    with pytest.raises(NoteError):
        TrustPolicy.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"log {LOG}\n", "must have exactly one quorum line"),
        ("quorum none\nquorum none\n", "line 2 .* exactly one quorum line"),
        ("quorum w\n", "line 1 .* 'w' must be defined on an earlier line"),
        ("trust w\n", "must begin with log, witness, group or quorum: 'trust'"),
        ("log\n", "must read: log VKEY"),
        ("log x\n", "a verifier key must read name"),
        (f"log {KEYS[0]}\n", "must be Ed25519, got type 0x04"),
        (f"log {LOG}\nlog {LOG}\n", "line 2 .* must be listed once"),
        (f"witness w {KEYS[0]} url more\n", "must read: witness NAME VKEY"),
        (f"witness none {KEYS[0]}\n", "the name 'none' must be new"),
        (f"witness w {KEYS[0]}\nwitness w {KEYS[1]}\n", "the name 'w' must be new"),
        (f"witness w {KEYS[0]}\nwitness v {KEYS[0]}\n", "the key of witness 'v' must be listed on"),
        ("group g all\n", "must read: group NAME K"),
        ("group g all w\n", "'w' must be defined on an earlier line"),
        (f"witness w {KEYS[0]}\ngroup g 2 w\n", r"must be any, all or in \[1, 1\], got '2'"),
        (f"witness w {KEYS[0]}\ngroup g 01 w\n", r"must be any, all or in \[1, 1\], got '01'"),
        (f"witness w {KEYS[0]}\ngroup g 1 w w\n", "'w' must be a member of one group only"),
        (f"witness w {KEYS[0]}\ngroup g 1 w\ngroup h 1 w\n", "must be a member of one group only"),
        ("quorum none\r\n", "control characters are not allowed"),
    ],
)
def test_a_broken_rule_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(NoteError, match=message):
        TrustPolicy.parse(text)


def test_a_policy_made_by_hand_must_know_its_quorum() -> None:
    with pytest.raises(NoteError, match="the quorum 'w' must be a witness, a group or none"):
        TrustPolicy(logs=(), witnesses={}, groups={}, quorum="w")
