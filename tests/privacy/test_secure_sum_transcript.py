"""What a coordinator that keeps everything can see: one hundred rounds, tested as statistics.

Before each look the coordinator strips what the protocol lets it rebuild: the self-masks of
survivors, the pair masks of the dropped. What is then left must still be noise to it. Each
test can fail for honest code with the chance that it states.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from privacy.masks import apply_masks
from privacy.shamir import combine
from privacy.sum_deal import DEAL_FIELDS, Deal
from privacy.sum_keys import mask_seed, pair_seed
from privacy.sum_wire import (
    MASKED_HEADER_BYTES,
    Kind,
    Survivors,
    format_bundle,
    open_message,
    unpack,
)
from tests.privacy.consortium import (
    NAMES,
    ROSTER,
    Cohort,
    Transcript,
    asked_for,
    run_round,
    set_up,
    terms_for,
)

ROUNDS, DIMENSION = 100, 256
TERMS = terms_for(5)
ALARM = 1e-7


class Watched:
    """One round as the coordinator sees it, with all that it can rebuild."""

    def __init__(self, cohort: Cohort, seen: Transcript) -> None:
        self.cohort, self.seen = cohort, seen
        self.deals_digest = hashlib.sha256(format_bundle(seen.deals)).digest()
        self.deals = {
            name: Deal.of(
                open_message(Kind.DEAL, data, roster=ROSTER, size=DEAL_FIELDS), cohort.terms
            )
            for name, data in seen.deals.items()
        }
        fields = unpack(unpack(next(iter(seen.statements.values())))[0])[1:]
        self.said = Survivors.of(fields)

    def rebuilt(self, dealer: str) -> bytes:
        """The one secret of a dealer whose shares were revealed."""
        names, place = self.said.alive, 1
        if dealer not in names:
            names, place = self.said.dropped, 2
        at = 32 * names.index(dealer)
        shares = {
            self.cohort.terms.cohort.index(holder) + 1: unpack(unpack(message)[0])[1 + place][
                at : at + 32
            ]
            for holder, message in self.seen.reveals.items()
        }
        return combine(dict(list(shares.items())[: self.cohort.terms.threshold]))

    def stripped(self, name: str, *, known: dict[str, bytes] | None = None) -> NDArray[np.uint32]:
        """A survivor's vector without its self-mask, and without masks shared with the dropped.

        Args:
            name: The survivor.
            known: Seeds that it shares in this round with members that collude.
        """
        ring = np.frombuffer(self.seen.masked[name][MASKED_HEADER_BYTES:], dtype="<u4").copy()
        seeds = dict(known or {})
        for dropped in self.said.dropped:
            boxes = self.deals[dropped].open_box(self.rebuilt(dropped), self.cohort.terms)
            seeds[dropped] = boxes[name]
        masks = {peer: mask_seed(seed, self.deals_digest) for peer, seed in seeds.items()}
        apply_masks(
            ring,
            added=[mask for peer, mask in masks.items() if name > peer],
            subtracted=[
                mask_seed(self.rebuilt(name), self.deals_digest),
                *(mask for peer, mask in masks.items() if name < peer),
            ],
        )
        return ring


def watched_rounds(*, drops: bool) -> Iterator[tuple[Watched, dict[str, NDArray[np.int64]]]]:
    generator = np.random.default_rng(20)
    cohort = set_up(TERMS)
    # The same values in all rounds: whatever repeats would stand out.
    values = {name: generator.integers(-1000, 1000, DIMENSION) for name in TERMS.cohort}
    for number in range(ROUNDS):
        seen = Transcript()
        silent = {"mask": [NAMES[number % 5]]} if drops else {}
        asked = asked_for(number, dimension=DIMENSION)
        run_round(cohort, asked, values, silent=silent, transcript=seen)
        yield Watched(cohort, seen), values


def is_uniform(words: NDArray[np.uint32]) -> bool:
    seen = np.bincount(words.view(np.uint8), minlength=256)
    expected = seen.sum() / 256
    return bool(chi2.sf(((seen - expected) ** 2 / expected).sum(), 255) > ALARM)


def is_uncorrelated(words: NDArray[np.uint32], values: NDArray[np.int64]) -> bool:
    # |r| sqrt(N) is standard normal here; 5.33 is passed with a chance of 1e-7.
    signed = words.view(np.int32).astype(np.float64)
    return bool(abs(np.corrcoef(signed, values)[0, 1]) * np.sqrt(words.size) < 5.33)


def check_all(*, drops: bool) -> None:
    sent: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in TERMS.cohort}
    stripped: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in TERMS.cohort}
    for watched, values in watched_rounds(drops=drops):
        for name in watched.said.alive:
            body = watched.seen.masked[name][MASKED_HEADER_BYTES:]
            sent[name].append(np.frombuffer(body, dtype="<u4"))
            stripped[name].append(watched.stripped(name))
        everything = np.sum([watched.stripped(n) for n in watched.said.alive], axis=0)
        expected = np.sum([values[n] for n in watched.said.alive], axis=0)
        # The stripping is right: what is left adds up to the sum that is revealed anyway.
        assert np.array_equal(everything.astype(np.uint32).view(np.int32), expected)
    for name in TERMS.cohort:
        for look in (sent, stripped):
            words = np.concatenate(look[name])
            assert is_uniform(words)
            assert is_uncorrelated(words, np.tile(values[name], len(look[name])))
            rounds = np.stack(look[name])
            assert is_uncorrelated(
                np.ascontiguousarray(rounds[1:]).ravel(),
                rounds[:-1].ravel().view(np.int32).astype(np.int64),
            )


def test_over_a_hundred_rounds_no_single_contribution_shows() -> None:
    check_all(drops=False)


def test_over_a_hundred_rounds_with_a_dropped_member_each_no_contribution_shows() -> None:
    """Every member drops twenty times, so what is rebuilt for one round is tried on others."""
    check_all(drops=True)


def test_a_late_vector_of_a_dropped_member_stays_hidden() -> None:
    """It sent its values, the coordinator called it dropped and opened its box."""
    cohort, words = set_up(TERMS), []
    late, others = NAMES[4], NAMES[:4]
    for number in range(ROUNDS):
        seen = Transcript()
        asked = asked_for(number, dimension=DIMENSION)
        values = {name: np.full(DIMENSION, 5) for name in TERMS.cohort}
        tally, _ = run_round(cohort, asked, values, silent={"mask": [late]}, transcript=seen)
        watched = Watched(cohort, seen)
        ring = np.frombuffer(
            cohort.members[late].mask(tally.deals(), values[late])[MASKED_HEADER_BYTES:],
            dtype="<u4",
        ).copy()
        seeds = watched.deals[late].open_box(watched.rebuilt(late), TERMS)
        apply_masks(ring, added=[mask_seed(seeds[p], watched.deals_digest) for p in others])
        words.append(ring)

    assert is_uniform(np.concatenate(words))
    assert np.unique(np.concatenate(words)).size > 0.99 * ROUNDS * DIMENSION


def known_seeds(
    cohort: Cohort, watched: Watched, name: str, colluding: list[str]
) -> dict[str, bytes]:
    """What colluding members share with somebody in this round, out of their own state."""
    digest = next(iter(watched.deals.values())).round_digest
    seeds = {}
    for peer in colluding:
        parts = unpack(cohort.members[peer].state)[2:]
        state = dict(zip(parts[::2], parts[1::2], strict=True))
        seeds[peer] = pair_seed(state[f"pair/{name}".encode()], digest)
    return seeds


def guesses(*, mask_between: bool) -> float:
    """How often the coordinator and three members tell who of the other two sent which vector.

    The two vectors are known and so is their sum. All masks but the one between the two are
    stripped. A guess is trained on half of the rounds and counted on the other half.
    """
    generator = np.random.default_rng(21)
    cohort, first, second = set_up(TERMS), NAMES[0], NAMES[1]
    colluding = list(NAMES[2:5])
    candidates = generator.integers(-1000, 1000, (2, DIMENSION))
    features, swapped = [], generator.permutation(np.arange(2 * ROUNDS) % 2)
    for number in range(2 * ROUNDS):
        values = dict.fromkeys(colluding, np.zeros(DIMENSION, dtype=np.int64))
        values[first], values[second] = candidates[:: -1 if swapped[number] else 1]
        seen = Transcript()
        run_round(cohort, asked_for(number, dimension=DIMENSION), values, transcript=seen)
        watched = Watched(cohort, seen)
        # Without the mask between the two the attack must win: else it would prove nothing.
        knows = colluding if mask_between else [*colluding, second]
        left = watched.stripped(first, known=known_seeds(cohort, watched, first, knows))
        features.append(_features(left, candidates))
    table, half = np.array(features), ROUNDS
    centres = [table[:half][swapped[:half] == side].mean(axis=0) for side in (0, 1)]
    spread = table[:half].std(axis=0) + 1e-9
    away = [np.square((table[half:] - centre) / spread).sum(axis=1) for centre in centres]
    return float(np.mean((away[1] < away[0]) == swapped[half:].astype(bool)))


def _features(left: NDArray[np.uint32], candidates: NDArray[np.int64]) -> list[float]:
    signed = left.view(np.int32).astype(np.float64)
    found = []
    for candidate in candidates:
        rest = (left - candidate.astype(np.uint32)).view(np.int32).astype(np.float64)
        bits = np.unpackbits((left - candidate.astype(np.uint32)).view(np.uint8))
        found += [
            float(np.corrcoef(signed, candidate)[0, 1]),
            float(np.abs(rest).mean()),
            float(rest.mean()),
            float(bits.mean()),
            float((rest[1:] * rest[:-1]).mean()),
        ]
    return found


def test_two_inputs_with_one_sum_cannot_be_told_apart_by_all_the_others_together() -> None:
    """100 fair guesses: outside of [0.23, 0.77] with a chance of 1e-7."""
    assert 0.23 < guesses(mask_between=True) < 0.77
    assert guesses(mask_between=False) == 1.0
