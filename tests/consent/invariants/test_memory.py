"""I7 to I14, I17 and I20: what was written down stays, adds up, and counts once."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from consent import (
    Access,
    AccessGrant,
    AccessRequest,
    Action,
    Assessments,
    Checkpoint,
    EquivocationError,
    Gate,
    Identity,
    Log,
    LogError,
    NoteError,
    PolicyFiles,
    Profile,
    ProofError,
    Purpose,
    Refused,
    Register,
    Role,
    RoleMatrix,
    Rulebook,
    SealError,
    StateRoot,
    SubjectRef,
    TrustPolicy,
    Witness,
    append_state_root,
    build_dossier,
    sign_checkpoint,
    verify_consistency,
    verify_dossier,
    verify_inclusion,
    verify_order,
    verify_published,
)
from consent.access import SHIPPED_DIGEST, AccessDenied
from consent.assessment import AssessmentError, needing_assessment
from consent.merkle import consistency_proof, inclusion_proof, leaf_hash, tree_root
from consent.note import Note
from consent.policy import SHIPPED, PolicyError
from consent.purpose import ladder_of
from consent.sealed import SubjectKeys, connect
from consent.statetree import load_state_tree
from consent.wrapping import WrappingError, WrappingKeys
from privacy import (
    Budget,
    BudgetExhausted,
    GaussianRelease,
    Ledger,
    LedgerError,
    ReleaseKey,
    Replayed,
)

from .worlds import (
    COORDINATOR,
    IDENTITY,
    KEY,
    PEOPLE,
    POLICY,
    SOME,
    START,
    USE,
    Act,
    PlainReading,
    World,
    histories,
    new_folder,
    new_log,
    new_world,
    opened_events,
)

profiles = st.sampled_from(list(Profile))


def head_of(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)


def event(at: int = START, **more: str) -> dict[str, str | int]:
    return {"type": "x", "v": 1, "at": at, **more}


# --- I7 ---------------------------------------------------------------------------------------


@SOME
@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_i07_every_two_heads_that_a_log_ever_signed_are_consistent(steps: list[int]) -> None:
    """I7: the log only grows: indices have no gap and all its heads are of one history."""
    notes = []
    with new_log() as log:
        for number in steps:
            if number % 3:
                log.append_many([event() for _ in range(number)])
            elif number:
                log.append_sealed(SubjectRef("a" * 64), event())
            notes.append(log.checkpoint())
        heads = [head_of(note) for note in notes]
        leaves = [entry.hash for entry in log.entries()]

        assert [entry.index for entry in log.entries()] == list(range(log.tree_size))
        for old in heads:
            assert old.root_hash == tree_root(leaves[: old.tree_size])
            for new in heads:
                if 0 < old.tree_size <= new.tree_size:
                    verify_consistency(
                        old_size=old.tree_size,
                        new_size=new.tree_size,
                        old_root=old.root_hash,
                        new_root=new.root_hash,
                        proof=log.consistency_proof(old.tree_size, new.tree_size),
                    )


def test_i07_all_proofs_up_to_three_hundred_entries_verify() -> None:
    """I7: inclusion and consistency hold for each pair of sizes up to 300."""
    leaves = [leaf_hash(number.to_bytes(2, "big")) for number in range(300)]
    roots = [tree_root(leaves[:size]) for size in range(301)]
    for new in range(1, 301):
        # All pairs up to 130 are proved beside the tree itself; beyond, each new size in full
        # against old sizes that are neighbours of powers of two, and some between.
        olds = {old for old in range(1, new + 1) if old & (old - 1) == 0 or (new * old) % 23 == 0}
        for old in olds | {new - 1, new} - {0}:
            verify_consistency(
                old_size=old,
                new_size=new,
                old_root=roots[old],
                new_root=roots[new],
                proof=consistency_proof(leaves[:new], old),
            )
            verify_inclusion(
                leaves[old - 1],
                index=old - 1,
                tree_size=new,
                proof=inclusion_proof(leaves[:new], old - 1),
                root=roots[new],
            )


# --- I8 ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(name: str, at: int) -> Iterator[None]:
    """Let the n-th call of a system function fail, once."""
    real: Callable[..., object] = getattr(os, name)
    left = [at]

    def wrapped(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    setattr(os, name, wrapped)
    try:
        yield
    finally:
        setattr(os, name, real)


schedules = st.lists(
    st.tuples(
        st.sampled_from(["open", "sealed", "batch", "sign", "restart"]),
        st.sampled_from(["", "", "pwrite", "fdatasync", "full"]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=14,
)


def act_once(log: Log, what: str, *, number: int) -> dict[int, str]:
    """Do one thing and return what was acknowledged, by index."""
    name = f"event {number}"
    if what == "open":
        return {log.append(event(said=name)): name}
    if what == "sealed":
        return {log.append_sealed(SubjectRef("a" * 64), event(said=name)): name}
    if what == "batch":
        more = [event(said=f"{name}.{part}" + "x" * 3_000) for part in range(4)]
        return {i: str(e["said"]) for i, e in zip(log.append_many(more), more, strict=True)}
    return {}


@SOME
@given(schedule=schedules)
def test_i08_no_schedule_of_faults_loses_what_was_acknowledged(
    schedule: list[tuple[str, str, int]],
) -> None:
    """I8: after any I/O errors and restarts all acknowledged events are there, on one history."""
    acknowledged: dict[int, str] = {}
    roots: dict[int, bytes] = {}
    with new_folder() as folder:
        log = Log.create(folder / "log", IDENTITY)
        try:
            for number, (what, fault, nth) in enumerate(schedule):
                with contextlib.suppress(LogError), contextlib.ExitStack() as stack:
                    if fault == "full":
                        stack.enter_context(_full(log, pages=nth - 1))
                    elif fault:
                        stack.enter_context(failing(fault, nth))
                    acknowledged |= act_once(log, what, number=number)
                    if what == "sign":
                        head = head_of(log.checkpoint())
                        assert roots.setdefault(head.tree_size, head.root_hash) == head.root_hash
                if what == "restart" or _is_closed(log):
                    log.close()
                    log = Log.open(folder / "log", IDENTITY)
                leaves = [entry.hash for entry in log.entries()]
                assert log.root_hash == tree_root(leaves)
                for size, root in roots.items():
                    assert tree_root(leaves[:size]) == root
                for index, said in acknowledged.items():
                    assert log.opened(index)["said"] == said
            log.close()
            log = Log.open(folder / "log", IDENTITY)
            assert all(log.opened(index)["said"] == said for index, said in acknowledged.items())
        finally:
            log.close()


@contextlib.contextmanager
def _full(log: Log, *, pages: int) -> Iterator[None]:
    """Leave the database a few pages more than it has."""
    with log.reading() as connection:
        before = connection.execute("PRAGMA max_page_count").fetchone()[0]
        now = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {now + pages}")
    try:
        yield
    finally:
        with contextlib.suppress(LogError), log.reading() as connection:
            connection.execute(f"PRAGMA max_page_count = {before}")


def _is_closed(log: Log) -> bool:
    try:
        with log.reading():
            return False
    except LogError:
        return True


# --- I9 ---------------------------------------------------------------------------------------


@SOME
@given(turns=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), max_size=12))
def test_i09_two_writers_never_both_commit_an_index(turns: list[tuple[int, int]]) -> None:
    """I9: the second writer is refused; past a lock that was deleted, one of two fails."""
    with new_folder() as folder, Log.create(folder / "log", IDENTITY) as first:
        with pytest.raises(LogError, match="is open for writing elsewhere"):
            Log.open(folder / "log", IDENTITY)
        (folder / "log" / "lock").unlink()
        second = Log.open(folder / "log", IDENTITY)
        committed: dict[int, str] = {}
        for number, (who, count) in enumerate(turns):
            events = [event(said=f"{number}.{part}") for part in range(count)]
            with contextlib.suppress(LogError):
                indices = (first, second)[who].append_many(events)
                for index, told in zip(indices, events, strict=True):
                    assert committed.setdefault(index, str(told["said"])) == told["said"]
        second.close()
        first.close()
        with Log.open(folder / "log", IDENTITY) as log:
            found = {entry.index: entry.value["said"] for entry in log.entries()}
            root = tree_root([entry.hash for entry in log.entries()])

            assert found == committed
            assert list(found) == list(range(len(found)))
            assert log.root_hash == root


# --- I11 --------------------------------------------------------------------------------------


@SOME
@given(history=histories(most=20), profile=profiles)
def test_i11_log_tables_mask_and_state_root_say_the_same(
    history: list[Act], profile: Profile
) -> None:
    """I11: what the log adds up to is what tables, mask column and state root hold."""
    with new_folder() as folder, Log.create(folder / "log", IDENTITY) as log:
        world = World(log, profile)
        world.live(history)
        plain = PlainReading(world).masks(at=world.at)
        again = World(log, profile, at=world.at)
        reader = Register.open_readonly(folder / "log", pseudonym_key=KEY, profile=profile)
        with contextlib.closing(reader):
            read = {p: reader.mask(PEOPLE, p, at=world.at).tolist() for p in Purpose}

        assert world.masks() == again.masks() == read == plain
        world.register.verify_replay()
        again.register.verify_replay()
        for who in PEOPLE:
            assert world.register.state(who) == again.register.state(who)
        _check_state_root(world)


def _check_state_root(world: World) -> None:
    """Hold the state root to the chains that the log itself opens."""
    index = append_state_root(world.log, at=world.at)
    root = StateRoot.parse(world.log.entry(index).value)
    chains: dict[str, list[dict[str, object]]] = {}
    for opened in opened_events(world.log):
        if "subject" in opened:
            place = opened.pop("index")
            assert world.log.entry(place).value["k"] == "sealed"
            chains.setdefault(opened["subject"], []).append(opened)
    verify_order(load_state_tree(world.log, index).leaves, root)
    assert root.subjects == len(chains)
    world.cosigned()
    for who in PEOPLE:
        proved = verify_dossier(build_dossier(world.log, world.ref(who), at=world.at), POLICY)
        assert list(proved.events) == chains.get(world.ref(who), [])
        assert proved.complete == len(proved.events)


# --- I12 --------------------------------------------------------------------------------------


@SOME
@given(
    before=histories("give", "withdraw", "object", "request", most=12),
    after=histories("give", "withdraw", most=4),
    who=st.sampled_from(PEOPLE),
)
def test_i12_erasing_a_person_changes_no_root_and_nothing_of_others(
    before: list[Act], after: list[Act], who: str
) -> None:
    """I12: roots and proofs stay, the person's events never open again, others' bytes are equal."""
    with new_world() as world:
        world.live(before)
        log = world.log
        size, note = log.tree_size, log.checkpoint()
        leaves = [entry.leaf for entry in log.entries()]
        proofs = [log.inclusion_proof(index, size) for index in range(size)]
        openings = _openings(log)
        theirs = {i for i, (subject, _) in openings.items() if subject == world.ref(who)}
        world.register.erase(who, at=world.at)
        world.live(after)

        assert [entry.leaf for entry in log.entries(0, size)] == leaves
        assert [log.inclusion_proof(index, size) for index in range(size)] == proofs
        assert log.root_at(size) == head_of(note).root_hash
        for index, (_, opening) in openings.items():
            if index in theirs:
                with pytest.raises(SealError):
                    log.opened(index)
            else:
                assert log.opening(index) == opening
        assert _openings(log).keys() & set(range(size)) == openings.keys() - theirs


def _openings(log: Log) -> dict[int, tuple[str | None, object]]:
    found = {}
    for entry in log.entries():
        if entry.value.get("k") == "sealed":
            with contextlib.suppress(SealError):
                opening = log.opening(entry.index)
                found[entry.index] = (opening.link.subject, opening)
    return found


# --- I13 --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remembered:
    """All that a world decides, shows and can open at one moment."""

    masks: dict[Purpose, list[bool]]
    singles: dict[Purpose, list[bool]]
    leaves: list[bytes]
    root: bytes
    opened: list[dict[str, object]]
    openings: list[str]
    dossiers: list[bytes]

    @classmethod
    def of(cls, world: World, *, size: int) -> "Remembered":
        """Look at the first `size` entries, whatever came later."""
        log, rows = world.log, world.register.rows(PEOPLE)
        return cls(
            masks=world.masks(),
            singles={
                p: [r >= 0 and world.gate.is_permitted(int(r), p, at=world.at) for r in rows]
                for p in Purpose
            },
            leaves=[entry.leaf for entry in log.entries(0, size)],
            root=log.root_at(size),
            opened=[event for event in opened_events(log) if event["index"] < size],
            openings=[_opening(log, index) for index in range(size)],
            dossiers=[build_dossier(log, world.ref(who), at=world.at) for who in PEOPLE],
        )


def _opening(log: Log, index: int) -> str:
    try:
        return repr(log.opening(index))
    except (LogError, SealError) as error:
        return str(error)


@SOME
@given(
    history=histories(most=8),
    profile=profiles,
    turns=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_i13_rotating_keys_changes_no_decision_and_no_leaf(
    history: list[Act], profile: Profile, turns: list[bool]
) -> None:
    """I13: rotations between random acts; before and after, all is and opens the same.

    A world that rotates nothing decides the same all along. What an older wrapping key is good
    for after a rotation is nothing. The log's signing key and the pseudonym key do not rotate.
    """
    with new_folder() as folder, new_world(profile) as still:
        with Log.create(folder / "log", IDENTITY) as log:
            world = World(log, profile)
            for act, rotates in zip(history, turns, strict=False):
                world.do(act)
                still.do(act)
                if rotates:
                    _rotate(world, folder / "log")
                assert world.masks() == still.masks()
            _rotate(world, folder / "log")
            last = Remembered.of(world, size=log.tree_size)
            world.register.verify_replay()
        with Log.open(folder / "log", IDENTITY) as again:
            assert Remembered.of(World(again, profile, at=world.at), size=again.tree_size) == last


def _rotate(world: World, folder: Path) -> None:
    log = world.log
    append_state_root(log, at=world.at)
    world.cosigned()
    size, before = log.tree_size, Remembered.of(world, size=log.tree_size)
    old = (folder / "wrapping.key").read_bytes()
    log.rotate_wrapping_key(at=world.at)

    assert Remembered.of(world, size=size) == before
    assert [entry.value["type"] for entry in log.entries(size)] == ["key.rotated"]
    verify_consistency(
        proof=log.consistency_proof(size),
        old_size=size,
        old_root=before.root,
        new_size=log.tree_size,
        new_root=log.root_hash,
    )
    _verify_worthless(old, folder)


def _verify_worthless(wrapping_key: bytes, folder: Path) -> None:
    """An older wrapping key with a copy of today's database of keys opens nothing."""
    with new_folder() as thief:
        for name in ("keys.sqlite", "keys.sqlite-wal"):
            if (folder / name).exists():
                shutil.copy(folder / name, thief / name)
        (thief / "wrapping.key").write_bytes(wrapping_key)
        (thief / "wrapping.key").chmod(0o600)
        connection = connect(thief / "keys.sqlite")
        rows = connection.execute("SELECT * FROM subject_key").fetchall()
        connection.close()
        stolen = WrappingKeys(thief / "wrapping.key")
        for ref, wrapped, key_id in rows:
            for claimed in (key_id, stolen.current):
                with pytest.raises(WrappingError):
                    stolen.unwrap(wrapped, owner=ref, key_id=claimed)
        if rows:
            with pytest.raises(LogError, match="are wrapped under another key"):
                SubjectKeys(thief / "keys.sqlite")


@SOME
@given(history=histories(most=8), profile=profiles)
def test_i13_another_key_of_a_witness_or_a_log_changes_no_leaf_and_no_decision(
    history: list[Act], profile: Profile
) -> None:
    """I13: witnesses' keys change in the policy. The log's and the pseudonym key are bound."""
    with new_folder() as folder, Log.create(folder / "log", IDENTITY) as log:
        world = World(log, profile)
        world.live(history)
        note, masks = world.cosigned(), world.masks()
        leaves = [entry.leaf for entry in log.entries()]
        log.publish(folder / "audit")
        newer = Identity.generate(COORDINATOR.name)
        rotated = POLICY.format().replace("quorum coordinator\n", "") + (
            f"witness coordinator-2 {newer.public.format_witness()}\n"
            "group either 1 coordinator coordinator-2\nquorum either\n"
        )
        unknown = Register(log, pseudonym_key=bytes(32), profile=profile)
        verdict = verify_published(folder / "audit", TrustPolicy.parse(rotated))

        assert verdict == verify_published(folder / "audit", POLICY)
        assert verdict.entries == head_of(note).tree_size
        assert not any(unknown.mask(PEOPLE, p, at=world.at).any() for p in Purpose)
        log.close()
        with pytest.raises(LogError, match="belongs to another key"):
            Log.open(folder / "log", Identity.generate(IDENTITY.name))
        with Log.open(folder / "log", IDENTITY) as again:
            assert [entry.leaf for entry in again.entries()] == leaves
            assert World(again, profile, at=world.at).masks() == masks


# --- I14 --------------------------------------------------------------------------------------

BUDGET = Budget(epsilon=3.0, delta=1e-5)
charges = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "commit", "settle", "restart"]),
        st.integers(0, 5),
        st.sampled_from([40.0, 60.0, 90.0, 300.0]),
    ),
    max_size=16,
)


@SOME
@given(steps=charges)
def test_i14_a_budget_is_debited_before_the_answer_and_never_exceeded(
    steps: list[tuple[str, int, float]],
) -> None:
    """I14: spent never falls but by settling what was not released, and never passes the budget."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        ledger = Ledger.create(path, {"churn": BUDGET})
        answered: dict[int, bytes] = {}
        reserved: set[int] = set()
        for step, number, noise_std in steps:
            before = ledger.spent("churn").epsilon
            key = ReleaseKey(run="june", round=number, attempt=0)
            release = GaussianRelease(sensitivity=20, noise_std=noise_std)
            digest = bytes([number]) * 32
            try:
                if step == "reserve":
                    ledger.reserve(key, purpose="churn", release=release, request_digest=digest)
                    reserved.add(number)
                elif step == "commit":
                    ledger.commit(key, digest)
                    answered[number] = digest
                elif step == "settle":
                    ledger.settle_down(key, release)
                    assert number not in answered
                else:
                    ledger.close()
                    ledger = Ledger.open(path, {"churn": BUDGET})
            except (BudgetExhausted, Replayed, LedgerError, ValueError):
                assert ledger.spent("churn").epsilon == before
            spent = ledger.spent("churn").epsilon
            assert spent <= BUDGET.epsilon
            assert spent >= before or step == "settle"
            # No answer without the debit before it, and what was answered stays paid for.
            assert answered.keys() <= reserved
            for round_ in range(6):
                asked = ReleaseKey(run="june", round=round_, attempt=0)
                assert ledger.reply(asked) == answered.get(round_)
        ledger.close()


@SOME
@given(
    spending=st.lists(st.integers(0, 12), min_size=1, max_size=4)
    | st.lists(st.integers(0, 9), max_size=5).map(lambda tenths: [*sorted(tenths), 9]),
    granted=st.integers(8, 14),
    sent_first=st.sampled_from([False, False, False, True]),
)
def test_i14_a_log_in_which_a_budget_falls_or_is_passed_does_not_verify(
    spending: list[int],
    granted: int,
    sent_first: bool,  # noqa: FBT001
) -> None:
    """I14: the verifier refuses a debit that falls, one past the budget, and an unpaid answer."""
    about = {"v": 1, "at": START, "run": "june", "attempt": 0}
    with new_world() as world:
        for number, tenths in enumerate(spending):
            permit = _permit(world, number)
            charge = {
                **about,
                "type": "budget.charged",
                "round": number,
                "purpose": "contact",
                "epsilon_spent": f"{tenths / 10:.1f}",
                "epsilon_budget": f"{granted / 10:.1f}",
                "ledger_head": "ab",
            }
            sent = {
                **about,
                "type": "release.sent",
                "round": number,
                "permit": permit,
                "kind": "sum",
                "size_bytes": 8,
                "sha256": "cd",
            }
            pair = [sent, charge] if sent_first and number == len(spending) - 1 else [charge, sent]
            world.log.append_many(pair)
        world.log.checkpoint()
        with new_folder() as folder:
            world.log.publish(folder)
            lawful = (
                all(one <= two for one, two in pairwise(spending))
                and max(spending) <= granted
                and not sent_first
            )
            with contextlib.nullcontext() if lawful else pytest.raises(LogError):
                verify_published(folder, _anybody())


def _permit(world: World, number: int) -> str:
    use = {"kind": "train", "run": "june", "round": number, "attempt": 0, "recipients": []}
    world.log.append(
        {
            "type": "permit.issued",
            "v": 1,
            "at": START,
            "permit": f"p{number}",
            "purpose": "contact",
            "use": use,
            "policy": "00",
            "state_seq": 1,
            "mask_root": "ab",
            "included": "<64",
            "excluded": "<64",
        }
    )
    return f"p{number}"


def _anybody() -> TrustPolicy:
    return TrustPolicy.parse(f"log {IDENTITY.public.format()}\nquorum none\n")


# --- I17 --------------------------------------------------------------------------------------

FORKS = [[leaf_hash(bytes([min(fork, n // 3), n])) for n in range(12)] for fork in (0, 1, 2)]


class Witnessing(RuleBasedStateMachine):
    """A witness that is shown true heads, forks, old heads and wrong proofs, and restarts."""

    @initialize()
    def begin(self) -> None:
        """Open a witness that knows nothing."""
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "witness.db"
        self.witness = Witness(self.path, COORDINATOR)
        self.given: list[Checkpoint] = []

    @rule(fork=st.integers(0, 2), size=st.integers(0, 12), honest=st.booleans())
    def show(self, fork: int, size: int, honest: bool) -> None:  # noqa: FBT001
        """Show a head of one of three histories, with the proof or with another one."""
        leaves = FORKS[fork]
        head = Checkpoint(IDENTITY.name, size, tree_root(leaves[:size]))
        known = self.witness.size_of(IDENTITY.name)
        proof: list[bytes] = []
        if 0 < known <= size:
            proof = consistency_proof(leaves[:size], known)
        if not honest:
            proof = [*proof[1:], bytes(32)]
        note = sign_checkpoint(head, IDENTITY)
        with contextlib.suppress(EquivocationError, ProofError, NoteError):
            self.witness.cosign(note, log=IDENTITY.public, proof=proof, at=START)
            self.given.append(head)

    @rule()
    def restart(self) -> None:
        """Close the witness and open it again."""
        self.witness.close()
        self.witness = Witness(self.path, COORDINATOR)

    @invariant()
    def one_history(self) -> None:
        """Cosigned heads never shrink, and are all of one history."""
        for old, new in pairwise(getattr(self, "given", [])):
            assert old.tree_size <= new.tree_size
        roots: dict[int, bytes] = {}
        for head in getattr(self, "given", []):
            assert roots.setdefault(head.tree_size, head.root_hash) == head.root_hash
        assert any(
            all(tree_root(leaves[:size]) == root for size, root in roots.items())
            for leaves in FORKS
        )

    def teardown(self) -> None:
        """Remove the witness."""
        if hasattr(self, "witness"):
            self.witness.close()
            self.folder.cleanup()


def test_i17_a_witness_cosigns_one_growing_history_also_after_restarts() -> None:
    """I17: never two heads of one size, never a smaller after a larger, also after a restart."""
    run_state_machine_as_test(
        Witnessing, settings=settings(SOME, max_examples=30, stateful_step_count=12)
    )


# --- I20 --------------------------------------------------------------------------------------

FILES = PolicyFiles.read(SHIPPED)
staff = st.sampled_from(["ann", "bo"])
steps_of_policies = st.lists(
    st.tuples(st.sampled_from(["propose", "approve", "activate"]), staff, staff, st.booleans()),
    max_size=8,
)


class _Other:
    """An engine that has read other files."""

    name, digest = "other", hashlib.sha256(b"other").hexdigest()

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        return ("any",)


def ask(log: Log, action: Action, about: str, *, actor: str, author: str = "") -> AccessGrant:
    """Ask in whichever role may do this; the author is what the asker says."""
    is_first = action in {Action.PROPOSE_POLICY, Action.DRAFT_ASSESSMENT}
    request = AccessRequest(
        actor=actor,
        role=Role.POLICY_AUTHOR if is_first else Role.POLICY_APPROVER,
        action=action,
        about=about,
        author=author,
        mfa_age_s=0,
    )
    return Access(RoleMatrix(), log, activated=lambda: SHIPPED_DIGEST).authorize(request, at=START)


@SOME
@given(steps=steps_of_policies)
@example(steps=[("propose", "ann", "ann", True), ("approve", "ann", "bo", True)])
@example(
    steps=[
        ("propose", "ann", "ann", True),
        ("approve", "bo", "ann", True),
        ("activate", "bo", "bo", False),
    ]
)
def test_i20_no_policy_is_in_force_without_a_second_person_and_its_own_files(
    steps: list[tuple[str, str, str, bool]],
) -> None:
    """I20: activation needs an approver who is not the author, and an engine of these files."""
    with new_log() as log:
        rulebook = Rulebook(log)
        proposals: list[tuple[int, str]] = []
        approved: dict[int, str] = {}
        active = False
        for step, actor, claimed, right in steps:
            with contextlib.suppress(PolicyError, AccessDenied):
                if step == "propose":
                    grant = ask(log, Action.PROPOSE_POLICY, FILES.digest, actor=actor)
                    proposals.append((rulebook.propose(FILES, grant=grant, at=START).index, actor))
                elif step == "approve" and proposals:
                    index, _ = proposals[-1]
                    grant = ask(
                        log, Action.APPROVE_POLICY, FILES.digest, actor=actor, author=claimed
                    )
                    rulebook.approve(index, grant=grant, at=START)
                    approved[index] = actor
                elif step == "activate" and proposals:
                    index, _ = proposals[-1]
                    grant = ask(log, Action.ACTIVATE_POLICY, FILES.digest, actor=actor)
                    engine = RoleMatrix() if right else _Other()
                    rulebook.activate(index, engine, grant=grant, at=START)
                    assert right
                    assert index in approved
                    active = True
            assert (rulebook.active_digest() is not None) == active
        authors = dict(proposals)

        assert all(authors[index] != approver for index, approver in approved.items())
        assert all(p.approver != p.author for p in rulebook.proposals())
        rulebook.verify()


@SOME
@given(
    drafter=staff, approver=staff, claimed=staff, length=st.integers(1, 50), wait=st.integers(0, 60)
)
@example(drafter="ann", approver="ann", claimed="bo", length=9, wait=1)
@example(drafter="ann", approver="bo", claimed="ann", length=9, wait=8)
@example(drafter="ann", approver="bo", claimed="ann", length=9, wait=9)
def test_i20_a_purpose_is_opened_only_with_an_assessment_of_two_people(
    drafter: str, approver: str, claimed: str, length: int, wait: int
) -> None:
    """I20: a purpose that needs an assessment stays shut without one that another approved."""
    needed = needing_assessment(ladder_of(Profile.EU_GDPR))
    purpose = min(needed, key=lambda p: p.bit)
    with new_world() as world:
        assessments = Assessments(world.log, needed=needed)
        gate = Gate(world.register, world.log, policy_digest="00", checks=[assessments])
        for wanted in Purpose:
            world.do(Act("give", "anna", frozenset({wanted}), 302, 0))
        assert world.masks()[purpose][0]
        grant = ask(world.log, Action.DRAFT_ASSESSMENT, "pia", actor=drafter)
        assessments.draft("pia", purpose, "ab" * 32, grant=grant, at=START)
        with contextlib.suppress(AssessmentError, AccessDenied):
            grant = ask(world.log, Action.APPROVE_ASSESSMENT, "pia", actor=approver, author=claimed)
            assessments.approve("pia", valid_until=START + length, grant=grant, at=START)
        opened = False
        with contextlib.suppress(Refused):
            gate.open(purpose, ["anna"], use=USE, at=START + wait)
            opened = True

        lawful = drafter != approver and claimed == drafter and wait < length
        assert opened == lawful
