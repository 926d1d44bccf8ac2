"""What a secure sum costs, against Flower's SecAgg+ functions called in the same process.

Both run interleaved and one party after the other; figures are CPU time of this process,
medians, and ratios of medians. Flower's stages are called as its client modifier and its server
workflow call them, without its messages; ours with every signature and check, and with records
kept in memory. Ours agrees on keys once a run, Flower in every round: ours has a row of its own.
"""

import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import ConfigRecord, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

from bench.table import Figure, report
from privacy import (
    AgreementKey,
    NoiseSource,
    Party,
    Roster,
    SumMember,
    SumRound,
    SumSetup,
    SumTally,
    SumTerms,
    discrete_gaussian,
    least_threshold,
    make_card,
    quantise,
)
from privacy.masks import RingBits

T = TypeVar("T")
DIMENSION = 1_000_000
REPEATS, LARGE_REPEATS = 9, 3
SMALL_COHORT, LARGE_COHORT, DROPPED = 5, 20, 2
CLIP, LEVELS, MODULUS, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0
CLIP_NORM, SCALE = 64.0, 2**18
NOISE_STD = 1000.0
OPENDP_VALUES = 20_000


def main() -> int:
    """Measure, print, and write `bench/results/secure_sum_rows.json`."""
    return report("secure_sum_rows", figures())


def figures() -> list[Figure]:
    """All rows of the secure sum and of its noise."""
    update = np.random.default_rng(1).normal(0, 0.05, DIMENSION)
    return [
        *_client_figures(update),
        *_coordinator_figures(update),
        *_size_figures(),
        *_noise_figures(update),
    ]


@dataclass
class Clock:
    """CPU time of this process, by what it was spent on."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    def time(self, what: str, work: Callable[[], T]) -> T:
        """Do some work and book it."""
        started = time.process_time()
        done = work()
        self.spent.setdefault(what, []).append(time.process_time() - started)
        return done

    def median(self, what: str) -> float:
        """Seconds, the median of what was booked."""
        return statistics.median(self.spent[what])


# Ours.


class Consortium:
    """Members after their set-up, and rounds of them."""

    def __init__(self, n_members: int, *, ring_bits: RingBits, max_abs: int, clock: Clock) -> None:
        """Make keys, pin them, and run the set-up; the first member's is timed."""
        names = tuple(f"brand-{place:02d}" for place in range(n_members))
        identities = {name: Ed25519PrivateKey.generate() for name in names}
        signs = {name: _signer(identities[name]) for name in names}
        keys = {name: AgreementKey.generate() for name in names}
        self.roster = Roster(
            make_card(
                name,
                signs[name],
                identity=identities[name].public_key().public_bytes_raw(),
                agreement=keys[name].public,
            )
            for name in names
        )
        self.terms = SumTerms(
            run="bench",
            roster_digest=self.roster.digest,
            plan_digest=bytes(32),
            cohort=names,
            threshold=least_threshold(n_members),
            ring_bits=ring_bits,
            max_abs=max_abs,
        )
        self.members = {
            name: SumMember(
                Party(name, keys[name], self.roster),
                self.terms,
                sign=signs[name],
                persist=_forget,
            )
            for name in names
        }
        self.first, *self.others = names
        self._set_up(clock)

    def _set_up(self, clock: Clock) -> None:
        first, setup = self.members[self.first], SumSetup(self.terms, self.roster)

        def timed(work: Callable[[], T]) -> T:
            return clock.time("set-up part", work)

        setup.take_hello(timed(first.hello))
        for name in self.others:
            setup.take_hello(self.members[name].hello())
        hellos = setup.hellos()
        setup.take_meeting(timed(lambda: first.meet(hellos)))
        for name in self.others:
            setup.take_meeting(self.members[name].meet(hellos))
        meetings = setup.meetings()
        timed(lambda: first.settle(meetings))
        for name in self.others:
            self.members[name].settle(meetings)
        self.setup = setup.digest
        clock.spent["set-up"] = [sum(clock.spent.pop("set-up part"))]

    def round(
        self, number: int, values: NDArray[np.int64], *, n_dropped: int, clock: Clock
    ) -> NDArray[np.int64]:
        """One round of equal values; books the first member's work and the coordinator's."""
        asked = SumRound(round=number, attempt=0, dimension=values.size, question_digest=bytes(32))
        alive = self.terms.cohort[: len(self.terms.cohort) - n_dropped]
        client, server = Clock(), Clock()
        tally = SumTally(self.terms, self.roster, asked=asked, setup=self.setup)

        def booked(name: str) -> Clock:
            return client if name == self.first else Clock()

        for name in self.terms.cohort:
            deal = booked(name).time("client", lambda n=name: self.members[n].deal(asked))
            server.time("server", lambda d=deal: tally.take_deal(d))
        deals = server.time("server", tally.deals)
        for name in alive:
            sent = booked(name).time("client", lambda n=name: self.members[n].mask(deals, values))
            self.size_bytes = len(sent)
            server.time("server", lambda n=name, d=sent: tally.take_masked(n, d))
        survivors = server.time("server", tally.survivors)
        for name in alive:
            said = booked(name).time("client", lambda n=name: self.members[n].confirm(survivors))
            server.time("server", lambda d=said: tally.take_statement(d))
        statements = server.time("server", tally.statements)
        for name in alive:
            shares = booked(name).time("client", lambda n=name: self.members[n].unmask(statements))
            server.time("server", lambda d=shares: tally.take_reveal(d))
        total = server.time("server", tally.total)
        clock.spent.setdefault("client", []).append(sum(client.spent["client"]))
        clock.spent.setdefault("server", []).append(sum(server.spent["server"]))
        return total


def _forget(record: bytes) -> None:
    """Records are made and dropped: what a disk costs is the caller's."""


def _signer(key: Ed25519PrivateKey) -> Callable[[str, bytes], bytes]:
    return lambda context, message: key.sign(f"tillpact/{context}\0".encode() + message)


# Flower's.


def flower_round(
    update: NDArray[np.float64], *, n_members: int, n_dropped: int, clock: Clock
) -> list[NDArray[np.float64]]:
    """One round of Flower's stages with equal updates; books the first client's work."""
    ids = list(range(1, n_members + 1))
    threshold = least_threshold(n_members)
    settings = {
        Key.SAMPLE_NUMBER: n_members,
        Key.SHARE_NUMBER: n_members,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: LEVELS,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    states = {nid: SecAggPlusState() for nid in ids}
    client, server = Clock(), Clock()

    def booked(nid: int) -> Clock:
        return client if nid == 1 else Clock()

    publics, sent = {}, {}
    for nid in ids:
        states[nid].nid = nid
        found = booked(nid).time(
            "client", lambda n=nid: _setup(states[n], ConfigRecord(dict(settings)))
        )
        publics[nid] = [found[Key.PUBLIC_KEY_1], found[Key.PUBLIC_KEY_2]]
    for nid in ids:
        record = ConfigRecord({str(other): publics[other] for other in ids})
        sent[nid] = booked(nid).time("client", lambda n=nid, r=record: _share_keys(states[n], r))
    alive, dropped = ids[: n_members - n_dropped], ids[n_members - n_dropped :]
    parameters = ndarrays_to_parameters([update.astype(np.float32)])
    summed = None
    for nid in alive:
        addressed = [
            (other, text)
            for other in ids
            for to, text in zip(
                sent[other][Key.DESTINATION_LIST], sent[other][Key.CIPHERTEXT_LIST], strict=True
            )
            if to == nid
        ]
        record = ConfigRecord(
            {
                Key.CIPHERTEXT_LIST: [text for _, text in addressed],
                Key.SOURCE_LIST: [other for other, _ in addressed],
            }
        )
        masked = booked(nid).time(
            "client",
            lambda n=nid, r=record: _collect_masked_vectors(
                states[n], r, int(MAX_WEIGHT), parameters
            ),
        )
        data = masked[Key.MASKED_PARAMETERS]
        clock.spent["bytes"] = [sum(len(part) for part in data)]
        summed = server.time("server", lambda d=data, s=summed: _flower_add(s, d))
    reveals = {
        nid: booked(nid).time(
            "client",
            lambda n=nid: _unmask(
                states[n],
                ConfigRecord({Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: dropped}),
            ),
        )
        for nid in alive
    }
    result = server.time("server", lambda: _flower_unmask(summed, reveals, publics, alive=alive))
    clock.spent.setdefault("client", []).append(sum(client.spent["client"]))
    clock.spent.setdefault("server", []).append(sum(server.spent["server"]))
    return result


def _flower_add(
    summed: list[NDArray[np.int64]] | None, data: list[bytes]
) -> list[NDArray[np.int64]]:
    arrays = [bytes_to_ndarray(part) for part in data]
    return arrays if summed is None else parameters_addition(summed, arrays)


def _flower_unmask(
    summed: list[NDArray[np.int64]],
    reveals: dict[int, dict[str, list]],
    publics: dict[int, list[bytes]],
    *,
    alive: list[int],
) -> list[NDArray[np.float64]]:
    vector = parameters_mod(summed, MODULUS)
    shares: dict[int, list[bytes]] = {nid: [] for nid in publics}
    for reveal in reveals.values():
        for owner, share in zip(reveal[Key.NODE_ID_LIST], reveal[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    shapes = [array.shape for array in vector]
    for nid, found in shares.items():
        secret = combine_shares(found)
        if nid in alive:
            vector = parameters_subtraction(vector, pseudo_rand_gen(secret, MODULUS, shapes))
            continue
        for peer in publics:
            if peer == nid:
                continue
            key = generate_shared_key(
                bytes_to_private_key(secret), bytes_to_public_key(publics[peer][0])
            )
            mask = pseudo_rand_gen(key, MODULUS, shapes)
            change = parameters_addition if nid > peer else parameters_subtraction
            vector = change(vector, mask)
    ratio, arrays = factor_extract(parameters_mod(vector, MODULUS))
    values = dequantize(arrays, CLIP, LEVELS)
    return [(array - (len(alive) - 1) * CLIP) * (LEVELS / int(ratio)) for array in values]


# Rows.


def _client_figures(update: NDArray[np.float64]) -> list[Figure]:
    ours, theirs, grid = Clock(), Clock(), Clock()
    most = 2**31 // (2 * SMALL_COHORT)
    consortium = Consortium(SMALL_COHORT, ring_bits=32, max_abs=most, clock=ours)
    for number in range(REPEATS):
        values = grid.time("quantise", lambda: _quantised(update))
        summed = consortium.round(number, values, n_dropped=0, clock=ours)
        mean = flower_round(update, n_members=SMALL_COHORT, n_dropped=0, clock=theirs)
        # Both are right, or neither figure means anything.
        assert np.array_equal(summed, SMALL_COHORT * values)  # noqa: S101
        assert np.allclose(mean[0], update, atol=1e-4)  # noqa: S101
    mask, quantising = ours.median("client"), grid.median("quantise")
    flower = theirs.median("client")
    return [
        Figure(
            measure="secure sum, client CPU / Flower SecAgg+",
            value=(mask + quantising) / flower,
            must=0.25,
            aim=0.12,
            better="less",
            how=f"1e6 parameters, {SMALL_COHORT} parties, both with quantising: "
            f"{1e3 * (mask + quantising):.1f} ms of {1e3 * flower:.1f} ms",
        ),
        Figure(
            measure="secure sum, client CPU without our quantising / Flower SecAgg+",
            value=mask / flower,
            better="less",
            how=f"{1e3 * mask:.1f} ms for four messages; quantising {1e3 * quantising:.1f} ms",
        ),
        Figure(
            measure="secure sum, set-up of a run, client CPU, ms",
            value=1e3 * ours.median("set-up"),
            better="less",
            how="once a run: X25519 twice and ML-KEM-768 with each peer, 10 signatures checked",
        ),
    ]


def _coordinator_figures(update: NDArray[np.float64]) -> list[Figure]:
    ours, theirs = Clock(), Clock()
    most = 2**31 // (2 * LARGE_COHORT)
    values = _quantised(update)
    consortium = Consortium(LARGE_COHORT, ring_bits=32, max_abs=most, clock=ours)
    for number in range(LARGE_REPEATS):
        summed = consortium.round(number, values, n_dropped=DROPPED, clock=ours)
        flower_round(update, n_members=LARGE_COHORT, n_dropped=DROPPED, clock=theirs)
        assert np.array_equal(summed, (LARGE_COHORT - DROPPED) * values)  # noqa: S101
    own, flower = ours.median("server"), theirs.median("server")
    return [
        Figure(
            measure="secure sum, coordinator CPU / Flower SecAgg+",
            value=own / flower,
            must=0.1,
            aim=0.03,
            better="less",
            how=f"1e6 parameters, {LARGE_COHORT} parties, {DROPPED} dropped: {1e3 * own:.0f} ms "
            f"of {1e3 * flower:.0f} ms",
        ),
        Figure(
            measure="secure sum, client CPU with 20 parties / Flower SecAgg+",
            value=ours.median("client") / theirs.median("client"),
            better="less",
            how=f"without our quantising: {1e3 * ours.median('client'):.1f} ms of "
            f"{1e3 * theirs.median('client'):.1f} ms",
        ),
    ]


def _size_figures() -> list[Figure]:
    found = []
    for ring_bits, must, aim in ((32, 1.01, None), (16, 0.51, 0.51)):
        clock = Clock()
        consortium = Consortium(SMALL_COHORT, ring_bits=ring_bits, max_abs=100, clock=clock)
        small = consortium.members[consortium.first]
        consortium.round(0, np.ones(DIMENSION, dtype=np.int64), n_dropped=0, clock=clock)
        # What it sent in the run is in its state, beside seeds that it keeps: a bound from above.
        up = len(small.state)
        found.append(
            Figure(
                measure=f"secure sum, bytes up / float32, {ring_bits}-bit ring",
                value=up / (4 * DIMENSION),
                must=must,
                aim=aim,
                better="less",
                how=f"1e6 parameters, {SMALL_COHORT} parties: {up} bytes, of which "
                f"{consortium.size_bytes} masked; keys, deal, statement and shares counted",
            )
        )
    return found


def _noise_figures(update: NDArray[np.float64]) -> list[Figure]:
    clock, source = Clock(), NoiseSource()
    most = 2**31 // (2 * SMALL_COHORT)
    consortium = Consortium(SMALL_COHORT, ring_bits=32, max_abs=most, clock=clock)
    totals = []
    for number in range(REPEATS):
        noise = clock.time("noise", lambda: discrete_gaussian(NOISE_STD, DIMENSION, source=source))
        values = clock.time("quantise", lambda: _quantised(update))
        noised = clock.time("add", lambda v=values, n=noise: v + n)
        consortium.round(number, noised, n_dropped=0, clock=clock)
        totals.append(sum(clock.spent[what][-1] for what in ("noise", "quantise", "add", "client")))
        _others_noise(clock)
    own = clock.median("noise")
    rows = [
        Figure(
            measure="noise, quantise and secure sum, ms",
            value=1e3 * statistics.median(totals),
            must=40,
            aim=20,
            better="less",
            how=f"1e6 parameters, {SMALL_COHORT} parties, client CPU of a whole round: noise "
            f"{1e3 * own:.1f}, quantise {1e3 * clock.median('quantise'):.1f}, "
            f"protocol {1e3 * clock.median('client'):.1f}",
        )
    ]
    if "torch" in clock.spent:
        rows.append(
            Figure(
                measure="noise sampler / torch.normal",
                value=own / clock.median("torch"),
                must=2,
                aim=1.2,
                better="less",
                how=f"1e6 values, one thread: {1e3 * own:.1f} ms of "
                f"{1e3 * clock.median('torch'):.1f} ms",
            )
        )
    if "opendp" in clock.spent:
        theirs = clock.median("opendp") / OPENDP_VALUES
        rows.append(
            Figure(
                measure="OpenDP exact sampler / noise sampler",
                value=theirs / (own / DIMENSION),
                must=500,
                aim=1500,
                how=f"a value: {1e6 * theirs:.1f} us of {1e9 * own / DIMENSION:.1f} ns",
            )
        )
    return rows


def _others_noise(clock: Clock) -> None:
    """The samplers that ours is held against, where they are installed."""
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        clock.time("torch", lambda: torch.normal(0.0, NOISE_STD, (DIMENSION,)))
    if importlib.util.find_spec("opendp"):
        opendp = importlib.import_module("opendp.prelude")
        opendp.enable_features("contrib")
        domain = opendp.vector_domain(opendp.atom_domain(T="i32"))
        sampler = opendp.m.make_gaussian(domain, opendp.l2_distance(T=float), NOISE_STD)
        zeros = [0] * OPENDP_VALUES
        clock.time("opendp", lambda: sampler(zeros))


def _quantised(update: NDArray[np.float64]) -> NDArray[np.int64]:
    """The product's own step from floats to the grid, for one vector."""
    return quantise(update[np.newaxis], clip_norm=CLIP_NORM, scale=SCALE)[0]


if __name__ == "__main__":
    sys.exit(main())
