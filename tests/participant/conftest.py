from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conftest import Stores
from tests.federation import synthetic
from tests.federation.synthetic import Federation

# A busy machine is slow now and then; time is not what these properties are about.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One federation for tests that leave it as it is, but for entries of refusals."""
    folder = tmp_path_factory.mktemp("shared")
    made = Federation.create(folder, names=("amber", "birch", "cedar"), customers=15)
    yield made
    made.close()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation.create(tmp_path, names=("amber", "birch", "cedar"), customers=15)
    yield made
    made.close()


@pytest.fixture
def both_stores(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps every node that a test makes in SQLite, and once more in PostgreSQL."""
    monkeypatch.setattr(synthetic, "new_store", stores)
