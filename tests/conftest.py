"""Settings of every test here, and the databases that a node can be kept in."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgresql import Server

# A busy machine is slow now and then; time is not what these properties are about.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")

Stores = Callable[[], str | None]
"""Gives the store of one more log: None for SQLite, the URL of an empty schema for PostgreSQL."""

Backup = Callable[[Path, str | None], Callable[[], None]]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One PostgreSQL server for all tests; when it cannot start, they fail."""
    folder = Path(tempfile.mkdtemp(prefix="tillpact-", dir=_memory()))
    with Server(folder / "data") as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest) -> Stores:
    """Each test that asks for it runs once for each engine."""
    if request.param == "sqlite":
        return lambda: None
    server: Server = request.getfixturevalue("server")
    return lambda: server.url(schema=f"test_{next(_numbers)}")


@pytest.fixture
def backup(request: pytest.FixtureRequest) -> Backup:
    """Copies the database of a closed log, and gives what puts the copy back."""

    def copy(folder: Path, store: str | None) -> Callable[[], None]:
        if store is None:
            shutil.copy(folder / "log.sqlite", folder.parent / "copy")
            return lambda: shutil.copy(folder.parent / "copy", folder / "log.sqlite") and None
        server: Server = request.getfixturevalue("server")
        schema = store.rpartition("=")[2]
        dump = server.dump(schema)
        return lambda: server.restore(schema, dump)

    return copy


@pytest.fixture
def store(stores: Stores) -> str | None:
    """The store of the test's main log."""
    return stores()


def _memory() -> str | None:
    # Thousands of schemas are made; what they cost on a disk is not what is tested.
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - see above
