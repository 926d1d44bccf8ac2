"""Look at this machine the way a careful operator would before the first run."""

import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version
from pysqlite3 import dbapi2

if TYPE_CHECKING:
    from participant.config import ParticipantConfig

# Versions that were tried together; others may work and are not promised.
PINS = {"flwr": "1.41.0", "torch": "2.13.0"}
OPTIONAL = {"torch"}
# What must be set before Flower is imported, so that nothing but configured addresses is called.
FLOWER_SETTINGS = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_FREE_BYTES = 1_000_000_000
_RELEASED_S = 1_790_000_000  # 2026-09-21: no honest clock is earlier.
_WAL_BUG_FIXED = Version("3.51.3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it must be.
        found: What was found, in words, and where it is wrong what to do.
    """

    name: str
    passed: bool
    found: str


def examine(folder: Path) -> list[Check]:
    """Check Python, pinned versions, SQLite, disk, clock, and Flower's outbound calls.

    Args:
        folder: Where a node's state would go; its disk is measured.
    """
    return [_python(), *_pins(), _sqlite(), _disk(folder), _clock(), *_flower()]


def examine_data(config: "ParticipantConfig") -> Check:
    """Read a node's catalogue and transactions the way a run would.

    Raises:
        DataError: a file breaks the input contract.
    """
    from participant.customers import load_catalogue, load_customers  # noqa: PLC0415 - heavy

    catalogue = load_catalogue(config.products)
    table = load_customers(config.transactions, columns=config.columns, catalogue=catalogue)
    words = f"{len(table.subjects)} customers, {len(catalogue.codes)} products"
    return Check(name="data", passed=True, found=words)


def examine_store(config: "ParticipantConfig") -> Check:
    """Ask the database that keeps a node's log and register whether it answers."""
    from consent import LogError, open_readonly  # noqa: PLC0415 - heavy

    where = "SQLite in the node's folder" if config.store is None else "PostgreSQL"
    if config.store is None and not (config.folder / "log" / "log.sqlite").exists():
        return Check(name="store", passed=True, found=f"{where}; the node is not made yet")
    try:
        store = open_readonly(config.folder / "log", config.store)
    except LogError as error:
        return Check(name="store", passed=False, found=f"{where}: {error}")
    words = f"{store.version()} answers, {store.where}"
    store.close()
    return Check(name="store", passed=True, found=words)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    passed = sys.version_info >= (3, 11)
    return Check(name="Python", passed=passed, found=f"{found}, needs 3.11 or newer")


def _pins() -> Iterator[Check]:
    for package, pin in PINS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            optional = package in OPTIONAL
            words = "not installed; needed only by models that use it" if optional else "missing"
            yield Check(name=package, passed=optional, found=words)
        else:
            passed = Version(found).base_version == pin
            yield Check(name=package, passed=passed, found=f"{found}, pinned to {pin}")


def _sqlite() -> Check:
    found = dbapi2.sqlite_version
    passed = Version(found) >= _WAL_BUG_FIXED
    words = f"{found} (the system's is {sqlite3.sqlite_version}); {_WAL_BUG_FIXED} is needed"
    return Check(name="SQLite", passed=passed, found=words)


def _disk(folder: Path) -> Check:
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    words = f"{free / 1e9:.1f} GB free, 1 GB is needed"
    return Check(name="disk", passed=free >= _FREE_BYTES, found=words)


def _clock() -> Check:
    now = time.time()
    words = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    passed = now > _RELEASED_S
    return Check(name="clock", passed=passed, found=words if passed else f"{words}: set the clock")


def _flower() -> Iterator[Check]:
    for name, wanted in FLOWER_SETTINGS.items():
        found = os.environ.get(name, "unset")
        words = f"{name}={found}" if found == wanted else f"{name}={found}: set it to {wanted}"
        what = "Flower telemetry" if "TELEMETRY" in name else "Flower update check"
        yield Check(name=what, passed=found == wanted, found=words)
