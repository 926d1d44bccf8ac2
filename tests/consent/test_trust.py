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


def test_addresses_of_witnesses_are_kept() -> None:
    text = EXAMPLE.replace(KEYS[0], f"{KEYS[0]} https://x1.example/witness")
    policy = TrustPolicy.parse(text)

    assert policy.urls == {"X1": "https://x1.example/witness"}
    assert TrustPolicy.parse(policy.format()) == policy


@pytest.mark.parametrize(
    ("url", "message"),
    [("ftp://x", "of the witness 'X1' must be http:// or https://"), ("x", "must be http://")],
)
def test_an_address_that_nobody_can_ask_is_refused(url: str, message: str) -> None:
    with pytest.raises(NoteError, match=message):
        TrustPolicy.parse(EXAMPLE.replace(KEYS[0], f"{KEYS[0]} {url}"))


def test_an_address_of_nobody_is_refused() -> None:
    with pytest.raises(NoteError, match="the address of 'w' must be that of a witness"):
        TrustPolicy(logs=(), witnesses={}, groups={}, quorum="none", urls={"w": "http://x"})


@pytest.mark.parametrize("brands", range(3, 9))
def test_a_federation_asks_for_the_coordinator_and_more_than_half_of_the_peers(
    brands: int,
) -> None:
    coordinator, *members = (Identity.generate(f"n{i}").public for i in range(brands + 1))
    policy = TrustPolicy.of_federation(coordinator, members)
    names = [member.name for member in members]

    for count in range(brands):  # The own node, and so many of its peers.
        own_and_peers = names[: 1 + count]
        assert policy.is_quorum(["n0", *own_and_peers]) == (count > (brands - 1) / 2)
        assert not policy.is_quorum(own_and_peers)
    # Of the coordinator's own log: two quorums always share a brand.
    needed = next(n for n in range(brands + 1) if policy.is_quorum(["n0", *names[:n]]))
    assert 2 * needed > brands
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
