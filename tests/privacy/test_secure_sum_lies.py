"""A coordinator, or a member, that lies: each lie is refused by the member that it is told to."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import (
    AgreementKey,
    Party,
    Roster,
    SumMember,
    SumRefused,
    SumSetup,
    SumTally,
    SumTerms,
    SumVoid,
    least_threshold,
    make_card,
)
from privacy.roster import pack
from privacy.sum_wire import Kind, Survivors, format_bundle, sign_message, unpack
from tests.privacy.consortium import (
    NAMES,
    PINNED,
    ROSTER,
    Cohort,
    Disk,
    Transcript,
    asked_for,
    member,
    pinned,
    run_round,
    set_up,
    terms_for,
)

ME, PEER, LAST = NAMES[0], NAMES[1], NAMES[4]
TERMS = terms_for(5)
VALUES = {name: np.full(4, place) for place, name in enumerate(TERMS.cohort)}


def resigned(
    kind: Kind, data: bytes, changes: Mapping[int, bytes], *, signer: str | None = None
) -> bytes:
    """The message with some fields changed, signed again by its own sender or another."""
    name, *fields = unpack(unpack(data)[0])
    for place, value in changes.items():
        fields[place] = value
    return sign_message(kind, name.decode(), fields, PINNED[signer or name.decode()].sign)


def bundle_with(bundle: bytes, name: str, message: bytes | None) -> bytes:
    """The bundle with one member's message replaced, added or taken out."""
    messages = {unpack(unpack(part)[0])[0].decode(): part for part in unpack(bundle)}
    if message is None:
        del messages[name]
    else:
        messages[name] = message
    return format_bundle(messages)


def greeted(terms: SumTerms = TERMS) -> tuple[dict[str, SumMember], bytes]:
    members = {name: member(name, terms) for name in terms.cohort}
    return members, format_bundle({name: one.hello() for name, one in members.items()})


def refused(sentence: str) -> pytest.RaisesExc[SumRefused]:
    return pytest.raises(SumRefused, match=sentence)


# Set-up.


def test_a_swapped_key_is_refused() -> None:
    members, hellos = greeted()
    mine = AgreementKey.generate().public
    swapped = resigned(Kind.HELLO, unpack(hellos)[1], {7: mine}, signer=ME)

    with refused("the hello of brand-01 is not signed by it; nothing was done"):
        members[ME].meet(bundle_with(hellos, PEER, swapped))


def test_an_own_key_that_was_swapped_for_the_others_is_noticed() -> None:
    members, hellos = greeted()
    old = resigned(Kind.HELLO, members[ME].hello(), {7: AgreementKey.generate().public})

    with refused("the hello of brand-00 is not what it sent; nothing was sent"):
        members[ME].meet(bundle_with(hellos, ME, old))


def test_an_invented_member_is_refused() -> None:
    members, hellos = greeted()
    mallory = pinned("mallory")
    forged = sign_message(Kind.HELLO, "mallory", [b""] * 9, mallory.sign)

    with refused("a hello is from 'mallory', who is not pinned; nothing was done"):
        members[ME].meet(bundle_with(hellos, "mallory", forged))


def test_a_pinned_member_outside_the_cohort_is_refused() -> None:
    members, hellos = greeted()
    outside = resigned(Kind.HELLO, member(NAMES[5], terms_for(6)).hello(), {})

    with refused("brand-05 is not in the cohort; nothing was done"):
        members[ME].meet(bundle_with(hellos, NAMES[5], outside))


def test_a_missing_member_is_noticed() -> None:
    members, hellos = greeted()

    with refused("the hello of brand-01 is missing; nothing was done"):
        members[ME].meet(bundle_with(hellos, PEER, None))


@pytest.mark.parametrize(
    ("place", "what", "value"),
    [
        (0, "run", b"july"),
        (1, "roster_digest", bytes([1]) * 32),
        (2, "plan_digest", bytes([1]) * 32),
        (4, "threshold", b"3"),
        (5, "ring_bits", b"64"),
        (6, "max_abs", b"1001"),
    ],
)
def test_other_terms_are_refused_whoever_signed_them(place: int, what: str, value: bytes) -> None:
    members, hellos = greeted()
    other = resigned(Kind.HELLO, members[PEER].hello(), {place: value})

    with refused(f"brand-01 signed another {what} than brand-00 agreed to; nothing was sent"):
        members[ME].meet(bundle_with(hellos, PEER, other))


@pytest.mark.parametrize("place", [7, 8])
def test_keys_without_a_secret_are_refused(place: int) -> None:
    members, hellos = greeted()
    weak = resigned(Kind.HELLO, members[PEER].hello(), {place: bytes(32)})

    with refused("the keys of brand-01 give no secret; nothing was sent"):
        members[ME].meet(bundle_with(hellos, PEER, weak))


def test_a_second_set_of_keys_is_refused() -> None:
    members, hellos = greeted()
    members[ME].meet(hellos)
    other = resigned(Kind.HELLO, members[PEER].hello(), {7: AgreementKey.generate().public})

    with refused("brand-00 met others before; nothing was sent"):
        members[ME].meet(bundle_with(hellos, PEER, other))


def test_members_that_were_shown_other_keys_do_not_settle() -> None:
    members, hellos = greeted()
    meetings = format_bundle({name: one.meet(hellos) for name, one in members.items()})
    other = resigned(Kind.MEETING, members[PEER].meet(hellos), {0: bytes(32)})

    with refused("brand-01 met others than brand-00; nothing was settled"):
        members[ME].settle(bundle_with(meetings, PEER, other))


@pytest.mark.parametrize(
    ("carried", "sentence"),
    [
        (b"", "the meeting of brand-00 carries no secret for brand-04; nothing was settled"),
        (b"\1", "the meeting of brand-00 cannot be read; nothing was settled"),
        (pack(LAST.encode(), bytes(5)), "the meeting of brand-00 carries no secret for brand-04"),
    ],
)
def test_a_meeting_must_carry_a_secret(carried: bytes, sentence: str) -> None:
    members, hellos = greeted()
    meetings = format_bundle({name: one.meet(hellos) for name, one in members.items()})
    empty = resigned(Kind.MEETING, members[ME].meet(hellos), {1: carried})

    with refused(sentence):
        members[LAST].settle(bundle_with(meetings, ME, empty))


def test_the_order_of_the_set_up_is_kept() -> None:
    one = member(ME, TERMS)

    with refused("brand-00 has not met the others; nothing was settled"):
        one.settle(b"")
    with refused("brand-00 has not settled its keys; nothing was opened"):
        one.deal(asked_for())


def test_a_second_settlement_is_refused_and_the_same_one_is_fine() -> None:
    cohort = set_up(TERMS)
    cohort.members[ME].settle(cohort.meetings)
    other = resigned(Kind.MEETING, unpack(cohort.meetings)[1], {1: b""})

    with refused("brand-00 settled on others before; nothing was sent"):
        cohort.members[ME].settle(bundle_with(cohort.meetings, PEER, other))


# Terms that nobody may offer.


def test_a_member_does_not_begin_what_its_roster_floor_or_name_forbid() -> None:
    strange = Roster(
        [
            make_card(one.name, one.sign, identity=one.identity, agreement=one.agreement.public)
            for one in (*list(PINNED.values())[:4], pinned("mallory"))
        ]
    )
    small = dataclasses.replace(TERMS, roster_digest=strange.digest)

    with refused("the terms are for another roster; nothing was begun"):
        member(ME, small)
    with refused("brand-04 is not pinned in the roster; nothing was begun"):
        SumMember(
            Party(ME, PINNED[ME].agreement, strange), small, sign=PINNED[ME].sign, persist=Disk()
        )
    with refused("brand-09 is not in the cohort; nothing was begun"):
        member(NAMES[9], TERMS)
    with refused("the cohort has 5 members, the floor is 6; nothing was begun"):
        member(ME, TERMS, floor=6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run": ""}, "run must not be empty"),
        ({"roster_digest": b""}, "roster_digest must have 32 bytes, got 0"),
        ({"plan_digest": b"x"}, "plan_digest must have 32 bytes, got 1"),
        ({"cohort": NAMES[:2]}, "a cohort has 3 to 50 members, got 2"),
        ({"cohort": NAMES[4::-1]}, "a cohort must be sorted and name each member once"),
        ({"threshold": 3}, r"threshold must be in \[4, 5\] for 5 members, got 3"),
        ({"threshold": 6}, r"threshold must be in \[4, 5\] for 5 members, got 6"),
        ({"ring_bits": 8}, "ring_bits must be 16, 32 or 64, got 8"),
        ({"max_abs": 2**31}, r"max_abs must be in \[1, 429496729\] so that the sum cannot wrap"),
    ],
)
def test_terms_that_are_not_well_formed_are_refused(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(TERMS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"round": -1}, r"round and attempt must be in \[0, 2\^32\), got -1 and 0"),
        ({"dimension": 0}, r"dimension must be in \[1, 2\^27\], got 0"),
        ({"question_digest": b""}, "question_digest must have 32 bytes, got 0"),
    ],
)
def test_a_round_that_is_not_well_formed_is_refused(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(asked_for(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "least"), [(3, 3), (4, 4), (5, 4), (6, 5), (10, 7), (20, 14), (50, 34)]
)
def test_the_least_threshold_leaves_no_room_for_two_sets_of_survivors(
    members: int, least: int
) -> None:
    assert least_threshold(members) == least
    assert 3 * (2 * least - members) > members


@pytest.mark.parametrize(
    ("members", "threshold", "colluders"),
    [(3, 3, 1), (4, 4, 2), (5, 4, 2), (5, 5, 3), (7, 5, 2), (20, 14, 7)],
)
def test_terms_say_how_many_colluders_they_bear(
    members: int, threshold: int, colluders: int
) -> None:
    """The two sets of the drop tests, counted: h1 + c >= t and h2 + c >= t, h1 + h2 <= n - c."""
    assert terms_for(members, threshold=threshold).colluders == colluders


# A round: dealing and masking.


@dataclass
class Dealt:
    """A cohort in which everybody has dealt."""

    cohort: Cohort
    deals: dict[str, bytes]

    @property
    def bundle(self) -> bytes:
        """The deals as an honest coordinator hands them round."""
        return format_bundle(self.deals)

    def changed(self, name: str, place: int, value: bytes) -> bytes:
        """The bundle with one field of one deal changed and signed again by its dealer."""
        return bundle_with(self.bundle, name, resigned(Kind.DEAL, self.deals[name], {place: value}))


def dealt() -> Dealt:
    cohort = set_up(TERMS)
    return Dealt(cohort, {name: one.deal(asked_for()) for name, one in cohort.members.items()})


def flipped(data: bytes, place: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def field_of(message: bytes, place: int) -> bytes:
    return unpack(unpack(message)[0])[1 + place]


def test_too_few_deals_are_refused() -> None:
    one = dealt()
    few = format_bundle({name: one.deals[name] for name in NAMES[:3]})

    with refused("3 members dealt, at least 4 must; nothing was masked"):
        one.cohort.members[ME].mask(few, VALUES[ME])


def test_a_floor_above_the_threshold_counts() -> None:
    terms = terms_for(5)
    members = {name: member(name, terms, floor=5 if name == ME else 3) for name in terms.cohort}
    hellos = format_bundle({name: one.hello() for name, one in members.items()})
    meetings = format_bundle({name: one.meet(hellos) for name, one in members.items()})
    for one in members.values():
        one.settle(meetings)
    deals = {name: one.deal(asked_for()) for name, one in members.items()}
    del deals[LAST]

    with refused("4 members dealt, at least 5 must; nothing was masked"):
        members[ME].mask(format_bundle(deals), VALUES[ME])


def test_a_forged_deal_is_refused() -> None:
    one = dealt()
    forged = resigned(Kind.DEAL, one.deals[PEER], {}, signer=LAST)

    with refused("the deal of brand-01 is not signed by it"):
        one.cohort.members[ME].mask(bundle_with(one.bundle, PEER, forged), VALUES[ME])


def test_a_message_of_another_kind_is_no_deal() -> None:
    one = dealt()
    name, *fields = unpack(unpack(one.deals[PEER])[0])
    other = sign_message(Kind.REVEAL, PEER, fields, PINNED[PEER].sign)

    with refused("the deal of brand-01 is not signed by it"):
        one.cohort.members[ME].mask(bundle_with(one.bundle, name.decode(), other), VALUES[ME])


def test_deals_of_another_round_or_set_up_are_refused() -> None:
    one = dealt()

    with refused("the deal of brand-01 is for another round; nothing was masked"):
        one.cohort.members[ME].mask(one.changed(PEER, 0, bytes(32)), VALUES[ME])
    with refused("the deal of brand-01 follows another set-up; nothing was masked"):
        one.cohort.members[ME].mask(one.changed(PEER, 1, bytes(32)), VALUES[ME])


def test_a_bundle_without_the_own_deal_is_refused() -> None:
    one = dealt()

    with refused("the deal of brand-00 is not among the deals; nothing was masked"):
        one.cohort.members[ME].mask(bundle_with(one.bundle, ME, None), VALUES[ME])


def test_a_deal_of_a_member_outside_the_cohort_is_refused() -> None:
    one = dealt()
    fields = unpack(unpack(one.deals[PEER])[0])[1:]
    outside = sign_message(Kind.DEAL, NAMES[5], fields, PINNED[NAMES[5]].sign)

    with refused("brand-05 is not in the cohort; nothing was done"):
        one.cohort.members[ME].mask(bundle_with(one.bundle, NAMES[5], outside), VALUES[ME])


@pytest.mark.parametrize("place", [2, 3, 4, 5, 6, 7])
def test_a_deal_with_a_part_of_another_length_is_refused(place: int) -> None:
    one = dealt()
    short = field_of(one.deals[PEER], place)[:-1]

    with refused("the deal of brand-01 cannot be read; nothing was done"):
        one.cohort.members[ME].mask(one.changed(PEER, place, short), VALUES[ME])


def test_a_pair_that_does_not_share_a_seed_is_found_before_anything_is_masked() -> None:
    one = dealt()
    pairs = flipped(field_of(one.deals[PEER], 3))

    with refused("brand-01 and brand-00 do not share a seed; nothing was done"):
        one.cohort.members[ME].mask(one.changed(PEER, 3, pairs), VALUES[ME])


def test_a_tampered_share_is_refused() -> None:
    one = dealt()
    sealed = flipped(field_of(one.deals[PEER], 7))

    with refused("the shares of brand-01 for brand-00 do not open; nothing was masked"):
        one.cohort.members[ME].mask(one.changed(PEER, 7, sealed), VALUES[ME])


def test_shares_for_another_recipient_do_not_open() -> None:
    one = dealt()
    sealed = field_of(one.deals[PEER], 7)
    crossed = sealed[80:160] + sealed[:80] + sealed[160:]

    with refused("the shares of brand-01 for brand-00 do not open; nothing was masked"):
        one.cohort.members[ME].mask(one.changed(PEER, 7, crossed), VALUES[ME])


@pytest.mark.parametrize("place", [4, 5])
def test_a_share_that_its_dealer_did_not_commit_to_is_refused(place: int) -> None:
    one = dealt()
    commitments = flipped(field_of(one.deals[PEER], place))

    with refused("the share of brand-01 that brand-00 holds is not the one dealt; it was not used"):
        one.cohort.members[ME].mask(one.changed(PEER, place, commitments), VALUES[ME])


def test_values_are_checked_and_nothing_is_masked_before_a_deal() -> None:
    one = dealt()
    me = one.cohort.members[ME]

    with refused("a value is larger than max_abs 1000; nothing was masked"):
        me.mask(one.bundle, np.full(4, 1001))
    with refused(r"values must have shape \(4,\), got \(5,\); nothing was masked"):
        me.mask(one.bundle, np.zeros(5, dtype=np.int64))
    with refused("brand-00 has not dealt in a round; nothing was masked"):
        set_up(TERMS).members[ME].mask(one.bundle, VALUES[ME])


def test_other_deals_after_the_values_were_sent_are_refused() -> None:
    one = dealt()
    me = one.cohort.members[ME]
    me.mask(one.bundle, VALUES[ME])

    with refused("brand-00 masked its values for other deals; nothing was sent"):
        me.mask(bundle_with(one.bundle, LAST, None), VALUES[ME])


def test_an_old_round_is_not_opened_again_nor_another_under_its_name() -> None:
    cohort = set_up(TERMS)
    me = cohort.members[ME]
    me.deal(asked_for(3))
    me.deal(asked_for(3, attempt=1))

    with refused("round 3 attempt 0 is over for brand-00; nothing was opened"):
        me.deal(asked_for(3))
    with refused("round 2 attempt 9 is over for brand-00; nothing was opened"):
        me.deal(asked_for(2, attempt=9))
    with refused("round 3 attempt 1 was opened by brand-00 as another; nothing was opened"):
        me.deal(asked_for(3, attempt=1, dimension=5))


# A round: survivors.


@dataclass
class Masked:
    """A cohort in which everybody has sent values, and a coordinator that makes up survivors."""

    cohort: Cohort
    tally: SumTally
    deals: bytes
    masked: dict[str, bytes]

    def survivors(self, alive: Iterable[str], dropped: Iterable[str] = ()) -> bytes:
        """A set of survivors of this round, true or not."""
        honest = Survivors.parse(self.tally.survivors())
        return dataclasses.replace(
            honest, alive=tuple(sorted(alive)), dropped=tuple(sorted(dropped))
        ).format()


def masked(terms: SumTerms = TERMS) -> Masked:
    cohort = set_up(terms)
    tally = SumTally(terms, ROSTER, asked=asked_for(), setup=cohort.setup)
    for one in cohort.members.values():
        tally.take_deal(one.deal(asked_for()))
    deals = tally.deals()
    values = {name: np.full(4, place) for place, name in enumerate(terms.cohort)}
    sent = {name: one.mask(deals, values[name]) for name, one in cohort.members.items()}
    for name, data in sent.items():
        tally.take_masked(name, data)
    return Masked(cohort, tally, deals, sent)


def test_a_member_signs_no_survivors_before_it_sent_values() -> None:
    one = dealt()
    said = Survivors(
        round_digest=bytes(32), deals_digest=bytes(32), alive=NAMES[:5], dropped=()
    ).format()

    with refused("brand-00 has sent no values in a round; nothing was signed"):
        one.cohort.members[ME].confirm(said)


def test_a_peer_in_both_lists_is_refused() -> None:
    one = masked()

    with refused("brand-01 is said to be alive and dropped; nothing was signed"):
        one.cohort.members[ME].confirm(one.survivors(NAMES[:5], [PEER]))


def test_survivors_and_dropped_must_be_all_who_dealt() -> None:
    one = masked()
    sentence = "the survivors and dropped are not those who dealt; nothing was signed"

    with refused(sentence):
        one.cohort.members[ME].confirm(one.survivors(NAMES[:4]))
    with refused(sentence):
        one.cohort.members[ME].confirm(one.survivors(NAMES[:6]))


def test_a_survivor_that_is_called_dropped_does_not_help() -> None:
    one = masked()

    with refused("brand-00 sent values and is called dropped; nothing was signed"):
        one.cohort.members[ME].confirm(one.survivors(NAMES[1:5], [ME]))


def test_a_small_group_of_survivors_is_refused() -> None:
    one = masked()

    with refused("3 members survive, at least 4 must; nothing was signed"):
        one.cohort.members[ME].confirm(one.survivors(NAMES[:3], NAMES[3:5]))


def test_survivors_of_another_round_or_other_deals_are_refused() -> None:
    one = masked()
    honest = Survivors.parse(one.tally.survivors())
    me = one.cohort.members[ME]

    with refused("the survivors are of another round; nothing was signed"):
        me.confirm(dataclasses.replace(honest, round_digest=bytes(32)).format())
    with refused("the survivors masked for other deals; nothing was signed"):
        me.confirm(dataclasses.replace(honest, deals_digest=bytes(32)).format())


def test_a_second_set_of_survivors_is_refused_also_after_a_restart() -> None:
    one = masked()
    first = one.survivors(NAMES[:5])
    second = one.survivors(NAMES[:4], [LAST])
    statement = one.cohort.members[ME].confirm(first)

    with refused("brand-00 signed another set of survivors; nothing was sent"):
        one.cohort.members[ME].confirm(second)
    with refused("brand-00 signed another set of survivors; nothing was sent"):
        one.cohort.restored(ME).confirm(second)
    assert one.cohort.restored(ME).confirm(first) == statement


def test_split_survivor_sets_release_no_share_to_anybody() -> None:
    """Half are told that the last one dropped; neither half reaches the threshold."""
    one = masked(terms_for(6))
    everybody, without = one.survivors(NAMES[:6]), one.survivors(NAMES[:5], [NAMES[5]])
    told = {name: everybody if place % 2 else without for place, name in enumerate(NAMES[:5])}
    statements = {name: one.cohort.members[name].confirm(said) for name, said in told.items()}

    for name, member_ in one.cohort.members.items():
        if name not in statements:
            continue
        same = {peer: data for peer, data in statements.items() if told[peer] == told[name]}
        with refused("members signed the survivors, at least 5 must; nothing was revealed"):
            member_.unmask(format_bundle(same))
        with refused("signed another set of survivors than"):
            member_.unmask(format_bundle(statements))


def confirmed() -> tuple[Masked, bytes]:
    one = masked()
    said = one.tally.survivors()
    return one, format_bundle(
        {name: member_.confirm(said) for name, member_ in one.cohort.members.items()}
    )


def test_no_share_leaves_without_a_signature_of_ones_own() -> None:
    one, statements = confirmed()
    other = masked()

    with refused("brand-00 has signed no set of survivors; nothing was revealed"):
        other.cohort.members[ME].unmask(statements)
    assert one.cohort.members[ME].unmask(statements)


def test_a_forged_statement_is_refused() -> None:
    one, statements = confirmed()
    forged = resigned(Kind.STATEMENT, unpack(statements)[1], {}, signer=LAST)

    with refused("the statement of brand-01 is not signed by it; nothing was done"):
        one.cohort.members[ME].unmask(bundle_with(statements, PEER, forged))


def test_a_statement_counts_once() -> None:
    one, statements = confirmed()
    first = unpack(statements)[0]

    with refused("a bundle of statements must be sorted and hold each sender once"):
        one.cohort.members[ME].unmask(pack(first, first, first, first))


def test_a_statement_of_somebody_who_did_not_survive_is_refused() -> None:
    one = masked()
    said = one.survivors(NAMES[:4], [LAST])
    statements = {name: one.cohort.members[name].confirm(said) for name in NAMES[:4]}
    strange = resigned(Kind.STATEMENT, statements[ME], {})
    strange = sign_message(Kind.STATEMENT, LAST, unpack(unpack(strange)[0])[1:], PINNED[LAST].sign)

    with refused("brand-04 is no survivor and signed; nothing was revealed"):
        one.cohort.members[ME].unmask(format_bundle(statements | {LAST: strange}))


def test_shares_are_revealed_once_and_the_same_again() -> None:
    one, statements = confirmed()
    reveal = one.cohort.members[ME].unmask(statements)
    fewer = bundle_with(statements, LAST, None)

    assert one.cohort.members[ME].unmask(statements) == reveal
    assert one.cohort.members[ME].unmask(fewer) == reveal
    assert one.cohort.restored(ME).unmask(statements) == reveal


# Cohorts without recovery.


@pytest.mark.parametrize("members", [3, 4])
def test_three_or_four_members_sum_in_one_message_after_the_set_up(members: int) -> None:
    terms = terms_for(members)
    cohort = set_up(terms)
    tally = SumTally(terms, ROSTER, asked=asked_for(), setup=cohort.setup)
    for place, (name, one) in enumerate(cohort.members.items()):
        if place == members - 1:
            with pytest.raises(SumVoid, match=f"at least {members} must; a new attempt is a new"):
                tally.total()
        sent = one.mask_without_recovery(asked_for(), np.full(4, place))
        assert cohort.restored(name).mask_without_recovery(asked_for(), np.zeros(4)) == sent  # type: ignore[arg-type]
        tally.take_masked(name, sent)

    assert tally.total().tolist() == [sum(range(members))] * 4


def test_small_cohorts_do_not_deal_and_large_ones_must() -> None:
    small, large = set_up(terms_for(4)), set_up(TERMS)

    with refused("a cohort of 4 has no recovery; nothing was dealt"):
        small.members[ME].deal(asked_for())
    with refused("a cohort of 5 must deal before it masks; nothing was masked"):
        large.members[ME].mask_without_recovery(asked_for(), VALUES[ME])
    small.members[ME].mask_without_recovery(asked_for(1), VALUES[ME])
    with refused("round 0 attempt 0 is over for brand-00; nothing was opened"):
        small.members[ME].mask_without_recovery(asked_for(), VALUES[ME])


# Memory.


def test_every_step_is_answered_with_the_same_bytes_after_a_restart() -> None:
    cohort = set_up(TERMS)
    seen = Transcript()
    tally, _ = run_round(cohort, asked_for(), VALUES, transcript=seen)

    back = cohort.restored(PEER)

    assert back.hello() == unpack(cohort.hellos)[1]
    assert back.meet(cohort.hellos) == unpack(cohort.meetings)[1]
    back.settle(cohort.meetings)
    assert back.deal(asked_for()) == seen.deals[PEER]
    assert back.mask(tally.deals(), np.zeros(4, dtype=np.int64)) == seen.masked[PEER]
    assert back.confirm(tally.survivors()) == seen.statements[PEER]
    assert back.unmask(tally.statements()) == seen.reveals[PEER]
    assert back.state == cohort.members[PEER].state


def test_a_run_goes_on_when_every_member_restarts_before_every_step() -> None:
    cohort = set_up(TERMS)
    tally = SumTally(TERMS, ROSTER, asked=asked_for(), setup=cohort.setup)
    for name in NAMES[:5]:
        tally.take_deal(cohort.restored(name).deal(asked_for()))
    for name in NAMES[:4]:
        tally.take_masked(name, cohort.restored(name).mask(tally.deals(), VALUES[name]))
    for name in NAMES[:4]:
        tally.take_statement(cohort.restored(name).confirm(tally.survivors()))
    for name in NAMES[:4]:
        tally.take_reveal(cohort.restored(name).unmask(tally.statements()))

    assert tally.total().tolist() == [6, 6, 6, 6]


def test_nothing_leaves_before_it_is_durable() -> None:
    cohort = set_up(TERMS)
    me, disk = cohort.members[ME], cohort.disks[ME]
    before = me.state
    disk.broken = True

    with pytest.raises(OSError, match="no space left"):
        me.deal(asked_for())

    assert me.state == before
    disk.broken = False
    assert me.deal(asked_for())


def test_each_reply_is_durable_when_it_leaves() -> None:
    cohort = set_up(TERMS)
    me, disk = cohort.members[ME], cohort.disks[ME]
    others = [cohort.members[name] for name in NAMES[1:5]]
    tally = SumTally(TERMS, ROSTER, asked=asked_for(), setup=cohort.setup)

    reply = me.deal(asked_for())
    assert reply in disk.records[-1]
    for data in (reply, *(one.deal(asked_for()) for one in others)):
        tally.take_deal(data)
    reply = me.mask(tally.deals(), VALUES[ME])
    assert reply in disk.records[-1]
    for name in NAMES[:5]:
        tally.take_masked(name, cohort.members[name].mask(tally.deals(), VALUES[name]))
    reply = me.confirm(tally.survivors())
    assert reply in disk.records[-1]
    for data in (reply, *(one.confirm(tally.survivors()) for one in others)):
        tally.take_statement(data)
    assert me.unmask(tally.statements()) in disk.records[-1]
    assert len(disk.records) == 4


def test_the_keys_of_the_run_and_the_last_round_are_gone_when_they_are_not_needed() -> None:
    cohort = set_up(TERMS)
    run_round(cohort, asked_for(0), VALUES)
    me = cohort.members[ME]
    mask = next(part for part in unpack(me.state) if len(part) == 96)

    assert b"key_seed" not in me.state
    assert b"kem/" not in me.state
    me.deal(asked_for(1))
    assert mask not in me.state


def test_a_state_of_another_member_of_other_terms_or_of_nobody_is_refused() -> None:
    cohort = set_up(TERMS)
    party = Party(ME, PINNED[ME].agreement, ROSTER)

    def begin(state: bytes, terms: SumTerms = TERMS) -> None:
        SumMember(party, terms, sign=PINNED[ME].sign, persist=Disk(), state=state)

    with refused("the state is of another member or other terms; nothing was begun"):
        begin(cohort.members[PEER].state)
    with refused("the state is of another member or other terms; nothing was begun"):
        begin(cohort.members[ME].state, terms_for(5, run="july"))
    good = cohort.members[ME].state
    more = (
        good + pack(b"x"),
        good + pack(b"x", b"0"),
        good + pack(b"tillpact sum entries 1", b"1"),
    )
    for garbage in (b"", b"x", good[:-1], pack(b"x", b"0"), good[30:], *more):
        with refused("the state of a sum cannot be read; nothing was begun"):
            begin(garbage)


# Garbage.


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_garbage_is_refused_and_changes_nothing(data: bytes) -> None:
    one = GARBAGE.cohort.members[ME]
    before = one.state

    for step in (one.meet, one.settle, one.confirm, one.unmask):
        with pytest.raises(SumRefused):
            step(data)
    with pytest.raises(SumRefused):
        one.mask(data, VALUES[ME])

    assert one.state == before


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_one_changed_byte_of_the_deals_is_refused(place: int, change: int) -> None:
    data = bytearray(GARBAGE.bundle)
    data[place % len(data)] ^= change

    with pytest.raises(SumRefused):
        GARBAGE.cohort.members[ME].mask(bytes(data), VALUES[ME])


def test_a_message_has_as_many_fields_as_its_kind() -> None:
    members, hellos = greeted()
    fields = unpack(unpack(members[PEER].hello())[0])[1:]

    for wrong in (fields[:-1], (*fields, b"")):
        longer = sign_message(Kind.HELLO, PEER, wrong, PINNED[PEER].sign)
        with refused("a hello cannot be read; nothing was done"):
            members[ME].meet(bundle_with(hellos, PEER, longer))


def test_a_bundle_holds_one_to_fifty_messages() -> None:
    members, _ = greeted()

    for bundle in (b"", pack(*[members[PEER].hello()] * 51), pack(*[b""] * 300)):
        with refused("a bundle of hellos cannot be read; nothing was done"):
            members[ME].meet(bundle)


def test_more_parts_than_a_cohort_can_need_are_not_read() -> None:
    with pytest.raises(ValueError, match="more than 256 parts"):
        unpack(bytes(8 * 257))
    assert len(unpack(bytes(8 * 256))) == 256


def test_survivors_are_sorted_and_named_once() -> None:
    one = masked()
    honest = Survivors.parse(one.tally.survivors())

    for alive in (honest.alive[::-1], (*honest.alive, honest.alive[-1])):
        said = dataclasses.replace(honest, alive=alive).format()
        with refused("a set of survivors cannot be read; nothing was done"):
            one.cohort.members[ME].confirm(said)


GARBAGE = dealt()


# The coordinator's own checks: one member's fault is named and costs the others nothing.


def test_the_set_up_needs_everybody_and_takes_each_once() -> None:
    members, hellos = greeted()
    setup = SumSetup(TERMS, ROSTER)
    for name in NAMES[:4]:
        setup.take_hello(members[name].hello())
    setup.take_hello(members[ME].hello())

    with pytest.raises(SumVoid, match="the set-up is void: nothing came from brand-04"):
        setup.hellos()
    with refused("brand-00 sent two different answers; the second was not taken"):
        setup.take_hello(resigned(Kind.HELLO, members[ME].hello(), {7: bytes(32)}))
    with refused("brand-01 signed other terms; its hello was not taken"):
        setup.take_hello(resigned(Kind.HELLO, members[PEER].hello(), {0: b"july"}))
    with refused("brand-05 is not in the cohort; its message was not taken"):
        setup.take_hello(
            sign_message(
                Kind.HELLO,
                NAMES[5],
                unpack(unpack(members[ME].hello())[0])[1:],
                PINNED[NAMES[5]].sign,
            )
        )
    setup.take_hello(members[LAST].hello())
    with refused("brand-01 met others; its meeting was not taken"):
        setup.take_meeting(resigned(Kind.MEETING, members[PEER].meet(hellos), {0: bytes(32)}))


def test_the_tally_names_whose_deal_does_not_fit() -> None:
    one = dealt()
    tally = SumTally(TERMS, ROSTER, asked=asked_for(), setup=one.cohort.setup)
    tally.take_deal(one.deals[ME])

    with refused("brand-00 and brand-01 do not share a seed; the deal was not taken"):
        pairs = flipped(field_of(one.deals[PEER], 3))
        tally.take_deal(resigned(Kind.DEAL, one.deals[PEER], {3: pairs}))
    with refused("the deal of brand-01 is for another round; it was not taken"):
        tally.take_deal(resigned(Kind.DEAL, one.deals[PEER], {0: bytes(32)}))
    with pytest.raises(SumVoid, match=r"round 0 attempt 0 is void: 1 of 5 members dealt, at least"):
        tally.deals()
    for name in NAMES[1:4]:
        tally.take_deal(one.deals[name])
    tally.deals()
    with refused("the deal of brand-04 came too late; it was not taken"):
        tally.take_deal(one.deals[LAST])


def test_the_tally_takes_values_once_in_time_and_whole() -> None:
    cohort = set_up(TERMS)
    tally = SumTally(TERMS, ROSTER, asked=asked_for(), setup=cohort.setup)
    for name in NAMES[:5]:
        tally.take_deal(cohort.members[name].deal(asked_for()))
    sent = {name: cohort.members[name].mask(tally.deals(), VALUES[name]) for name in NAMES[:5]}
    for name in NAMES[:4]:
        tally.take_masked(name, sent[name])

    with refused("brand-05 did not deal; its values were not summed"):
        tally.take_masked(NAMES[5], sent[LAST])
    with refused("brand-00 sent its values before; nothing was summed"):
        tally.take_masked(ME, sent[ME])
    with refused("the values of brand-04 are for another round; nothing was summed"):
        tally.take_masked(LAST, flipped(sent[LAST], 20))
    with refused("the values of brand-04 must have 96 bytes, got 95; nothing was summed"):
        tally.take_masked(LAST, sent[LAST][:-1])
    with refused("the survivors are not named yet; nothing was taken"):
        tally.total()
    tally.survivors()
    with refused("the values of brand-04 came too late; they were not summed"):
        tally.take_masked(LAST, sent[LAST])


def test_the_tally_refuses_statements_and_shares_that_are_wrong() -> None:
    one, statements = confirmed()
    tally = one.tally
    for data in unpack(statements)[:4]:
        tally.take_statement(data)
    bundle = tally.statements()
    reveals = {name: member_.unmask(bundle) for name, member_ in one.cohort.members.items()}
    for name in NAMES[:3]:
        tally.take_reveal(reveals[name])

    with refused("brand-04 signed other survivors; it was not taken"):
        tally.take_statement(resigned(Kind.STATEMENT, unpack(statements)[4], {3: b""} | {0: b""}))
    with refused("the shares of brand-04 are for other survivors; none was taken"):
        tally.take_reveal(resigned(Kind.REVEAL, reveals[LAST], {0: bytes(32)}))
    with refused("the share of brand-00 that brand-04 holds is not the one dealt; it was not used"):
        wrong = flipped(field_of(reveals[LAST], 1))
        tally.take_reveal(resigned(Kind.REVEAL, reveals[LAST], {1: wrong}))
    with pytest.raises(SumVoid, match="3 of 5 members revealed their shares, at least 4 must"):
        tally.total()
    tally.take_reveal(reveals[NAMES[3]])
    assert tally.total().tolist() == [10, 10, 10, 10]
