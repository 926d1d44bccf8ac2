import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from coordinator.rounds import Attempt, RoundRecord, Run, RunStatus
from models.plan import Plan
from tests.federation.synthetic import Federation

RECORD = RoundRecord(
    round=1,
    attempt=2,
    name="second moments",
    cohort=("a", "b", "c"),
    bytes_up={"a": 5, "b": 6, "c": 7},
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    federation = Federation.create(tmp_path_factory.mktemp("plan"), customers=15)
    federation.close()
    return federation.plan()


def same(first: Run, second: Run) -> bool:
    names = [field.name for field in dataclasses.fields(Run) if field.name != "parameters"]
    return all(getattr(first, name) == getattr(second, name) for name in names) and (
        {name: array.tolist() for name, array in first.parameters.items()}
        == {name: array.tolist() for name, array in second.parameters.items()}
    )


def test_a_run_without_a_record_begins_with_the_public_parameters(
    tmp_path: Path, plan: Plan
) -> None:
    run = Run.load(tmp_path, plan)

    assert (run.status, run.rounds, run.asked) == (RunStatus.RUNNING, [], None)
    assert not run.parameters["weights"].any()


def test_what_is_saved_is_read_back(tmp_path: Path, plan: Plan) -> None:
    run = Run.load(tmp_path, plan)
    run.save()
    assert same(Run.load(tmp_path, plan), run)

    run.refusals["d"] = "it did not answer in time"
    run.bytes_up["a"] = 3
    run.begin_attempt(Attempt(round=1, attempt=2, cohort=("a", "b", "c")))
    assert same(Run.load(tmp_path, plan), run)

    run.finish_round(RECORD, {"weights": np.arange(3.0), "velocity": np.zeros((2, 2))})
    assert same(Run.load(tmp_path, plan), run)

    run.end(RunStatus.FAILED, reason="nobody came")
    loaded = Run.load(tmp_path, plan)
    assert same(loaded, run)
    assert loaded.reason == "nobody came"
    assert loaded.total_bytes_up == {"a": 8, "b": 6, "c": 7}
    assert sorted(path.name for path in tmp_path.glob("r*")) == [
        "round-0.npz",
        "round-1.npz",
        "run.json",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"status": "paused", "rounds": []}',
        '{"status": "running", "rounds": [{"round": 1}], "asked": null}',
        '{"status": "running", "rounds": [7], "asked": null}',
        '{"status": "running", "rounds": [], "asked": 7}',
        '{"status": "running", "rounds": [], "asked": null, "noise": 0}',
    ],
)
def test_a_damaged_record_is_not_gone_on_from(tmp_path: Path, plan: Plan, text: str) -> None:
    Run.load(tmp_path, plan).save()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"^the record in .* is damaged; the run stops here$"):
        Run.load(tmp_path, plan)


@pytest.mark.parametrize("keep", [None, 0, 10, 200])
def test_damaged_parameters_are_not_gone_on_from(
    tmp_path: Path, plan: Plan, keep: int | None
) -> None:
    run = Run.load(tmp_path, plan)
    run.finish_round(RECORD, {"weights": np.arange(300.0)})
    path = tmp_path / "round-1.npz"
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"^the record in .* is damaged; the run stops here$"):
        Run.load(tmp_path, plan)


def test_a_record_from_before_the_last_round_still_fits_its_parameters(
    tmp_path: Path, plan: Plan
) -> None:
    """The process died between writing the model and the record that names it."""
    run = Run.load(tmp_path, plan)
    run.save()
    before = (tmp_path / "run.json").read_text()
    run.finish_round(RECORD, {"weights": np.ones(3)})
    (tmp_path / "run.json").write_text(before)

    loaded = Run.load(tmp_path, plan)

    assert loaded.rounds == []
    assert not loaded.parameters["weights"].any()
    assert json.loads(before)["rounds"] == []


def test_another_cohort_is_another_attempt_and_the_same_one_is_not(
    tmp_path: Path, plan: Plan
) -> None:
    run = Run.load(tmp_path, plan)
    assert run.next_attempt(1, ("a", "b", "c")) == 1
    run.begin_attempt(Attempt(round=1, attempt=1, cohort=("a", "b", "c")))

    loaded = Run.load(tmp_path, plan)

    assert loaded.next_attempt(1, ("a", "b", "c")) == 1
    assert loaded.next_attempt(1, ("a", "b", "d")) == 2
    assert loaded.next_attempt(2, ("a", "b", "d")) == 1
