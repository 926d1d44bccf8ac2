from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Gate, Log, LogError, Notice, Purpose, Register, Use, UseKind
from consent.lineage import (
    AffectedModel,
    ModelVersion,
    Remedies,
    Remedy,
    RemedyClocks,
    RemedyError,
    trace,
)

DAY = 86_400_000
T = 100 * DAY + 12_345
CLOCKS = RemedyClocks(retrain_ms=21 * DAY, retire_ms=30 * DAY)
OLD = ModelVersion(version="churn-1", rounds=frozenset({("r1", 0), ("r1", 1)}))
NEXT = ModelVersion(
    version="churn-2", rounds=frozenset({("r2", 0)}), parents=frozenset({"churn-1"})
)
CLEAN = ModelVersion(version="churn-3", rounds=frozenset({("r3", 0)}))
MODELS = [OLD, NEXT, CLEAN]


def affected(
    *models: ModelVersion, uses: list[tuple[str, int]], at: int = T
) -> dict[str, AffectedModel]:
    found = trace(uses, models, withdrawn_at=T, clocks=CLOCKS, at=at)
    return {model.version: model for model in found.models}


def test_a_withdrawal_is_traced_to_runs_rounds_and_models() -> None:
    found = trace([("r1", 1), ("r9", 0)], MODELS, withdrawn_at=T, clocks=CLOCKS, at=T)

    assert found.runs == ("r1", "r9")
    assert found.rounds == (("r1", 1), ("r9", 0))
    assert [model.version for model in found.models] == ["churn-1", "churn-2"]


def test_what_was_learned_is_passed_on_to_the_models_trained_from_it() -> None:
    third = ModelVersion(version="churn-4", rounds=frozenset(), parents=frozenset({"churn-2"}))

    assert affected(third, NEXT, OLD, CLEAN, uses=[("r1", 0)]).keys() == {
        "churn-1",
        "churn-2",
        "churn-4",
    }
    assert affected(third, NEXT, OLD, CLEAN, uses=[("r2", 0)]).keys() == {"churn-2", "churn-4"}
    assert affected(third, NEXT, OLD, CLEAN, uses=[("r1", 2)]) == {}


def test_the_two_clocks_run_from_the_withdrawal_to_a_day() -> None:
    model = affected(OLD, uses=[("r1", 0)])["churn-1"]

    assert (model.retrain_by, model.retire_by) == (121 * DAY, 130 * DAY)
    assert model.remedy is Remedy.RETRAIN
    assert affected(OLD, uses=[("r1", 0)], at=130 * DAY - 1)["churn-1"].remedy is Remedy.RETRAIN
    assert affected(OLD, uses=[("r1", 0)], at=130 * DAY)["churn-1"].remedy is Remedy.RETIRE


def test_a_model_that_is_out_of_use_needs_nothing() -> None:
    retired = ModelVersion(version="churn-1", rounds=OLD.rounds, retired_at=T - 1)

    assert affected(retired, uses=[("r1", 0)])["churn-1"].remedy is Remedy.NONE


runs = st.tuples(st.sampled_from(["r1", "r2"]), st.integers(0, 2))


@given(st.lists(st.frozensets(runs, max_size=2), max_size=5), st.lists(runs), st.data())
def test_a_model_is_affected_exactly_when_a_use_reaches_it(
    made_of: list[frozenset[tuple[str, int]]], uses: list[tuple[str, int]], data: st.DataObject
) -> None:
    models: list[ModelVersion] = []
    for number, rounds in enumerate(made_of):
        names = [model.version for model in models]
        parents = data.draw(st.frozensets(st.sampled_from(names), max_size=2)) if names else ()
        models.append(ModelVersion(version=str(number), rounds=rounds, parents=frozenset(parents)))

    def reached(model: ModelVersion) -> bool:
        return bool(model.rounds & set(uses)) or any(
            reached(models[int(parent)]) for parent in model.parents
        )

    shuffled = data.draw(st.permutations(models))
    found = trace(uses, shuffled, withdrawn_at=T, clocks=CLOCKS, at=T)
    assert [m.version for m in found.models] == [m.version for m in shuffled if reached(m)]


def test_models_that_cannot_be_traced_are_refused() -> None:
    with pytest.raises(ValueError, match="churn-2 was trained on from churn-1, not given"):
        affected(NEXT, uses=[])
    with pytest.raises(ValueError, match="every model version must have a name of its own"):
        affected(OLD, OLD, uses=[])


@pytest.mark.parametrize(("retrain", "retire"), [(0, DAY), (2 * DAY, DAY)])
def test_clocks_that_make_no_sense_are_refused(retrain: int, retire: int) -> None:
    with pytest.raises(ValueError, match="must be retrained after a day or more, and before it"):
        RemedyClocks(retrain_ms=retrain, retire_ms=retire)


def test_the_gate_knows_the_rounds_of_a_person(
    register: Register, log: Log, notice: Notice
) -> None:
    register.record(
        "anna",
        given={Purpose.FEDERATED_TRAINING},
        notice=notice,
        channel="app",
        expressed_at=1,
        at=1,
        until=2 * T,
    )
    gate = Gate(register, log, policy_digest="00")
    use = Use(kind=UseKind.TRAIN, run="r1", round=1)
    gate.open(Purpose.FEDERATED_TRAINING, ["anna"], use=use, at=2)
    uses = [(p.use.run, p.use.round) for p in gate.uses_of("anna") if p.use.kind is UseKind.TRAIN]

    assert affected(*MODELS, uses=uses).keys() == {"churn-1", "churn-2"}


@pytest.fixture
def remedies(log: Log) -> Remedies:
    return Remedies(log)


@pytest.fixture
def start(remedies: Remedies) -> Callable[..., list[str]]:
    def start(withdrawn_at: int, *models: ModelVersion) -> list[str]:
        found = trace(
            [("r1", 0)], models, withdrawn_at=withdrawn_at, clocks=CLOCKS, at=withdrawn_at
        )
        return remedies.open(found, at=withdrawn_at)

    return start


def test_a_clock_that_runs_is_never_put_off(
    remedies: Remedies, start: Callable[..., list[str]], log: Log
) -> None:
    assert start(T, OLD) == ["churn-1"]
    assert start(T + 5 * DAY, OLD, NEXT) == ["churn-2"]
    first, second = remedies.running(at=T)

    assert (first.version, first.retrain_by, first.retire_by) == ("churn-1", 121 * DAY, 130 * DAY)
    assert (second.version, second.retire_by) == ("churn-2", 135 * DAY)
    assert Remedies(log).running(at=T) == [first, second]


def test_clocks_that_ran_out_are_told(remedies: Remedies, start: Callable[..., list[str]]) -> None:
    start(T, OLD)
    assert remedies.overdue(at=121 * DAY - 1) == []
    assert [m.remedy for m in remedies.overdue(at=121 * DAY)] == [Remedy.RETRAIN]
    assert [m.remedy for m in remedies.overdue(at=130 * DAY)] == [Remedy.RETIRE]


def test_a_model_that_is_replaced_stops_its_clocks(
    remedies: Remedies, start: Callable[..., list[str]]
) -> None:
    start(T, OLD)
    with pytest.raises(RemedyError, match="the model churn-1 cannot replace itself"):
        remedies.close("churn-1", replaced_by="churn-1", at=T + DAY)
    remedies.close("churn-1", replaced_by="churn-3", at=T + DAY)

    assert remedies.running(at=T + DAY) == []
    with pytest.raises(RemedyError, match="no clock of the model churn-1 is running"):
        remedies.close("churn-1", replaced_by="", at=T + DAY)


def test_the_log_tells_a_model_and_days_and_nobody(
    start: Callable[..., list[str]], log: Log
) -> None:
    start(T, OLD)

    assert log.entry(0).value == {
        "type": "remedy.opened",
        "v": 1,
        "at": T - T % 60_000,
        "model": "churn-1",
        "retrain_by": 121 * DAY,
        "retire_by": 130 * DAY,
    }


def test_a_model_out_of_use_gets_no_clock(start: Callable[..., list[str]]) -> None:
    retired = ModelVersion(version="churn-1", rounds=OLD.rounds, retired_at=0)
    assert start(T, retired) == []


def test_a_clock_that_never_began_cannot_have_ended(remedies: Remedies) -> None:
    remedies._topic.append(
        {"type": "remedy.closed", "v": 1, "at": 1, "model": "churn-1", "replaced_by": ""}
    )
    with pytest.raises(LogError, match="entry 0 is a step of a clock that could not have been"):
        remedies.running(at=1)
