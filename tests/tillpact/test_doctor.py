import dataclasses
from pathlib import Path

import pytest

from consent import Identity, Log
from tests.federation.synthetic import config_of
from tests.postgresql import Server
from tillpact import doctor


def test_a_wrong_pin_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PINS, "flwr", "9.9.9")
    found = {check.name: check for check in doctor.examine(Path())}

    assert not found["flwr"].passed
    assert found["flwr"].found.endswith("pinned to 9.9.9")


def test_a_missing_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PINS, "no-such-package", "1")
    found = {check.name: check for check in doctor.examine(Path())}

    assert not found["no-such-package"].passed
    assert found["no-such-package"].found == "missing"


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_measured(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor.examine(tmp_path / "not" / "yet")}

    assert "GB free" in found["disk"].found


def test_the_store_of_a_node_is_named_and_asked(tmp_path: Path, server: Server) -> None:
    config = config_of("amber", tmp_path)
    not_yet = doctor.examine_store(config)
    Log.create(config.folder / "log", Identity.generate("amber")).close()
    there = doctor.examine_store(config)
    url = server.url(schema="examined")
    nowhere = doctor.examine_store(dataclasses.replace(config, store=url))
    Log.create(tmp_path / "other", Identity.generate("amber"), store=url).close()
    answers = doctor.examine_store(dataclasses.replace(config, store=url))

    assert (not_yet.passed, not_yet.found) == (
        True,
        "SQLite in the node's folder; the node is not made yet",
    )
    assert there.passed
    assert there.found.startswith("SQLite 3.")
    assert not nowhere.passed
    assert "it holds no log" in nowhere.found
    assert answers.passed
    assert answers.found.startswith("PostgreSQL 1")
    assert "(schema examined)" in answers.found
