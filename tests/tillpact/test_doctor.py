from pathlib import Path

import pytest

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
