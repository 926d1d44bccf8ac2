"""A cohort for tests of the secure sum: real members, a real tally, and every byte that passed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy import (
    AgreementKey,
    Party,
    Roster,
    SumMember,
    SumRound,
    SumSetup,
    SumTally,
    SumTerms,
    least_threshold,
    make_card,
)
from privacy.masks import RingBits
from privacy.sum_memory import is_whole
from privacy.sum_wire import Sign

NAMES = tuple(f"brand-{number:02d}" for number in range(20))


@dataclass(frozen=True)
class Pinned:
    """One member's long-lived keys."""

    name: str
    agreement: AgreementKey
    sign: Sign
    identity: bytes


def pinned(name: str) -> Pinned:
    key = Ed25519PrivateKey.generate()
    return Pinned(
        name,
        AgreementKey.generate(),
        lambda context, message: key.sign(f"tillpact/{context}\0".encode() + message),
        key.public_key().public_bytes_raw(),
    )


PINNED = {name: pinned(name) for name in NAMES}
ROSTER = Roster(
    make_card(one.name, one.sign, identity=one.identity, agreement=one.agreement.public)
    for one in PINNED.values()
)


def terms_for(
    members: int,
    *,
    threshold: int | None = None,
    ring_bits: RingBits = 32,
    max_abs: int = 1000,
    run: str = "june",
    plan_digest: bytes = bytes(32),
) -> SumTerms:
    return SumTerms(
        run=run,
        roster_digest=ROSTER.digest,
        plan_digest=plan_digest,
        cohort=NAMES[:members],
        threshold=least_threshold(members) if threshold is None else threshold,
        ring_bits=ring_bits,
        max_abs=max_abs,
    )


def asked_for(number: int = 0, *, attempt: int = 0, dimension: int = 4) -> SumRound:
    return SumRound(round=number, attempt=attempt, dimension=dimension, question_digest=bytes(32))


class Disk:
    """Keeps a member's records as a durable store does; `broken` refuses to."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.broken = False

    @property
    def state(self) -> bytes:
        """All that is there."""
        return b"".join(self.records)

    def __call__(self, record: bytes) -> None:
        """Keep a record, or fail as a full disk does."""
        if self.broken:
            raise OSError("no space left")
        if is_whole(record):
            self.records.clear()
        self.records.append(record)


def member(name: str, terms: SumTerms, *, disk: Disk | None = None, floor: int = 3) -> SumMember:
    one = PINNED[name]
    return SumMember(
        Party(name, one.agreement, ROSTER, floor=floor),
        terms,
        sign=one.sign,
        persist=Disk() if disk is None else disk,
    )


@dataclass
class Cohort:
    """Members after their set-up, and the digest of it."""

    terms: SumTerms
    members: Mapping[str, SumMember]
    disks: Mapping[str, Disk]
    setup: bytes
    hellos: bytes
    meetings: bytes

    def restored(self, name: str) -> SumMember:
        """The member as it comes back after a crash, from what it wrote last."""
        one, disk = PINNED[name], self.disks[name]
        return SumMember(
            Party(name, one.agreement, ROSTER),
            self.terms,
            sign=one.sign,
            persist=disk,
            state=disk.state,
        )


def set_up(terms: SumTerms) -> Cohort:
    disks = {name: Disk() for name in terms.cohort}
    members = {name: member(name, terms, disk=disks[name]) for name in terms.cohort}
    setup = SumSetup(terms, ROSTER)
    for one in members.values():
        setup.take_hello(one.hello())
    hellos = setup.hellos()
    for one in members.values():
        setup.take_meeting(one.meet(hellos))
    meetings = setup.meetings()
    for one in members.values():
        one.settle(meetings)
    return Cohort(terms, members, disks, setup.digest, hellos, meetings)


@dataclass
class Transcript:
    """All that the coordinator sees of one attempt."""

    deals: dict[str, bytes] = field(default_factory=dict)
    masked: dict[str, bytes] = field(default_factory=dict)
    statements: dict[str, bytes] = field(default_factory=dict)
    reveals: dict[str, bytes] = field(default_factory=dict)


Values = Mapping[str, NDArray[np.int64]]
NOBODY: Collection[str] = ()


def run_round(
    cohort: Cohort,
    asked: SumRound,
    values: Values,
    *,
    silent: Mapping[str, Collection[str]] | None = None,
    transcript: Transcript | None = None,
) -> tuple[SumTally, NDArray[np.int64]]:
    """One honest attempt; `silent` names who never answers from a phase on.

    Raises:
        SumVoid: Too few are left.
    """
    seen = Transcript() if transcript is None else transcript
    gone: set[str] = set()

    def answering(phase: str, among: Collection[str]) -> list[str]:
        gone.update((silent or {}).get(phase, NOBODY))
        return [name for name in among if name not in gone]

    tally = SumTally(cohort.terms, ROSTER, asked=asked, setup=cohort.setup)
    for name in answering("deal", cohort.terms.cohort):
        seen.deals[name] = cohort.members[name].deal(asked)
        tally.take_deal(seen.deals[name])
    deals = tally.deals()
    for name in answering("mask", seen.deals):
        seen.masked[name] = cohort.members[name].mask(deals, values[name])
        tally.take_masked(name, seen.masked[name])
    survivors = tally.survivors()
    for name in answering("confirm", seen.masked):
        seen.statements[name] = cohort.members[name].confirm(survivors)
        tally.take_statement(seen.statements[name])
    statements = tally.statements()
    for name in answering("unmask", seen.statements):
        seen.reveals[name] = cohort.members[name].unmask(statements)
        tally.take_reveal(seen.reveals[name])
    return tally, tally.total()
