from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.synthetic import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation.create(tmp_path, customers=15)
    yield made
    made.close()
