"""Members that fall silent at any moment, and members that deal wrongly."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import SumRefused, SumTally, SumVoid
from privacy.masks import RingBits
from privacy.roster import pack
from privacy.sum_wire import Kind, Survivors, format_bundle, sign_message, unpack
from tests.privacy.consortium import (
    NAMES,
    PINNED,
    ROSTER,
    Cohort,
    Transcript,
    asked_for,
    run_round,
    set_up,
    terms_for,
)

PHASES = ("deal", "mask", "confirm", "unmask")
COHORTS = {members: set_up(terms_for(members)) for members in (5, 6, 7)}
ROUNDS = itertools.count()


def shares_seen(
    cohort: Cohort, reveals: Mapping[str, bytes], said: Survivors
) -> dict[str, list[int]]:
    """How many shares of each dealer's self-mask and box the coordinator holds."""
    counts = {name: [0, 0] for name in cohort.terms.cohort}
    for message in reveals.values():
        digest, selves, boxes = unpack(unpack(message)[0])[1:]
        assert digest == said.digest
        assert (len(selves), len(boxes)) == (32 * len(said.alive), 32 * len(said.dropped))
        for name in said.alive:
            counts[name][0] += 1
        for name in said.dropped:
            counts[name][1] += 1
    return counts


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whoever_drops_whenever_the_round_ends_in_the_survivors_sum_or_shows_nothing(
    data: st.DataObject,
) -> None:
    cohort = COHORTS[data.draw(st.sampled_from(sorted(COHORTS)))]
    names, threshold = cohort.terms.cohort, cohort.terms.threshold
    silent = {
        phase: data.draw(st.sets(st.sampled_from(names), max_size=2), label=phase)
        for phase in PHASES
    }
    lists = st.lists(st.integers(-1000, 1000), min_size=4, max_size=4)
    values = {name: np.array(data.draw(lists), dtype=np.int64) for name in names}
    seen = Transcript()

    try:
        tally, total = run_round(
            cohort, asked_for(next(ROUNDS)), values, silent=silent, transcript=seen
        )
    except SumVoid:
        left = len(names) - len(set().union(*silent.values()))
        assert left < threshold
        # Fewer shares than the threshold say nothing at all, of anybody.
        assert len(seen.reveals) < threshold
        return

    said = Survivors.parse(tally.survivors())
    assert total.tolist() == sum(values[name] for name in seen.masked).tolist()
    assert set(said.alive) == set(seen.masked)
    counts = shares_seen(cohort, seen.reveals, said)
    assert not [name for name, (selves, boxes) in counts.items() if selves and boxes]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_sets_a_coordinator_makes_up_never_both_secrets_of_one_member(
    data: st.DataObject,
) -> None:
    """Two of seven collude: they sign every set and hand over every share they hold."""
    cohort = COHORTS[7]
    colluding, honest = NAMES[:2], NAMES[2:7]
    asked = asked_for(next(ROUNDS))
    tally = SumTally(cohort.terms, ROSTER, asked=asked, setup=cohort.setup)
    for name in cohort.terms.cohort:
        tally.take_deal(cohort.members[name].deal(asked))
    deals = tally.deals()
    for name in cohort.terms.cohort:
        tally.take_masked(name, cohort.members[name].mask(deals, np.zeros(4, dtype=np.int64)))
    truth = Survivors.parse(tally.survivors())
    lies = []
    for _ in range(2):
        dropped = data.draw(st.sets(st.sampled_from(NAMES[:7]), max_size=3))
        lies.append(
            dataclasses.replace(
                truth,
                alive=tuple(name for name in NAMES[:7] if name not in dropped),
                dropped=tuple(sorted(dropped)),
            )
        )
    told = {name: data.draw(st.sampled_from(lies)) for name in honest}
    signed: dict[str, bytes] = {}
    for name, said in told.items():
        try:
            signed[name] = cohort.members[name].confirm(said.format())
        except SumRefused:
            continue
    revealed: dict[Survivors, dict[str, bytes]] = {said: {} for said in lies}
    for name in signed:
        said = told[name]
        own = {peer: message for peer, message in signed.items() if told[peer] == said}
        own |= {
            peer: sign_message(Kind.STATEMENT, peer, said.fields, PINNED[peer].sign)
            for peer in colluding
            if peer in said.alive
        }
        try:
            revealed[said][name] = cohort.members[name].unmask(format_bundle(own))
        except SumRefused:
            continue

    totals = {name: [len(colluding), len(colluding)] for name in cohort.terms.cohort}
    for said, reveals in revealed.items():
        for name, counts in shares_seen(cohort, reveals, said).items():
            totals[name] = [old + new for old, new in zip(totals[name], counts, strict=True)]
    threshold = cohort.terms.threshold
    assert not [name for name, counts in totals.items() if min(counts) >= threshold]
    assert sum(1 for reveals in revealed.values() if reveals) <= 1


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_a_dropped_member_costs_only_its_own_values_in_any_ring(ring_bits: RingBits) -> None:
    terms = terms_for(6, ring_bits=ring_bits)
    cohort = set_up(terms)
    values = {name: np.full(4, 7 * place - 20) for place, name in enumerate(terms.cohort)}

    _, total = run_round(cohort, asked_for(), values, silent={"mask": [NAMES[2]]})

    expected = sum(values[name][0] for name in terms.cohort if name != NAMES[2])
    assert total.tolist() == [expected] * 4


def test_vectors_longer_than_a_chunk_add_up_when_members_drop_at_two_moments() -> None:
    cohort = set_up(terms_for(7, max_abs=10**6))
    generator = np.random.default_rng(5)
    dimension = 3 * 65_536 + 17
    values = {name: generator.integers(-(10**6), 10**6, dimension) for name in NAMES[:7]}

    _, total = run_round(
        cohort,
        asked_for(dimension=dimension),
        values,
        silent={"deal": [NAMES[0]], "mask": [NAMES[6]]},
    )

    assert np.array_equal(total, sum(values[name] for name in NAMES[1:6]))


def test_a_member_that_was_away_in_one_round_is_back_in_the_next() -> None:
    cohort = set_up(terms_for(5))
    values = {name: np.full(4, place) for place, name in enumerate(NAMES[:5])}

    _, first = run_round(cohort, asked_for(0), values, silent={"mask": [NAMES[4]]})
    _, second = run_round(cohort, asked_for(1), values)

    assert (first[0], second[0]) == (6, 10)


# Dealers that share something else than they commit to.


def lying_round(place: int, at: int, *, sends_values: bool) -> None:
    """One round in which brand-04 flips a bit of one field of its deal, and signs that."""
    cohort, asked = set_up(terms_for(5)), asked_for()
    liar, disk = NAMES[4], cohort.disks[NAMES[4]]
    fields = list(unpack(unpack(cohort.members[liar].deal(asked))[0])[1:])
    changed = bytearray(fields[place])
    changed[at] ^= 1
    fields[place] = bytes(changed)
    lie = sign_message(Kind.DEAL, liar, fields, PINNED[liar].sign)
    # A liar's node is its own: it remembers that it dealt what it sends.
    disk(with_entry(cohort.members[liar].state, b"round.deal", lie))
    members = {**cohort.members, liar: cohort.restored(liar)}
    values = {name: np.ones(4, dtype=np.int64) for name in NAMES[:5]}
    lying = dataclasses.replace(cohort, members=members)

    run_round(lying, asked, values, silent={} if sends_values else {"mask": [liar]})


def with_entry(state: bytes, name: bytes, value: bytes) -> bytes:
    parts = list(unpack(state))
    parts[parts.index(name) + 1] = value
    return pack(*parts)


@pytest.mark.parametrize(
    ("place", "at", "sends_values", "sentence"),
    [
        (2, 0, True, "the shares that brand-04 dealt do not fit; nothing was summed"),
        (2, 32, False, "the shares that brand-04 dealt do not fit; nothing was summed"),
        (6, 0, False, "the box of brand-04 does not open; nothing was summed"),
    ],
    ids=["self-mask", "box key", "box"],
)
def test_a_dealer_that_shares_something_else_is_named_when_it_matters(
    place: int, at: int, *, sends_values: bool, sentence: str
) -> None:
    with pytest.raises(SumRefused, match=sentence):
        lying_round(place, at, sends_values=sends_values)


def test_a_wrong_box_that_nobody_needs_to_open_costs_nothing() -> None:
    lying_round(6, 0, sends_values=True)
