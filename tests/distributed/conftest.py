from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ._processes import Launch, Workers


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two gloo processes for all cases: starting them takes longer than most cases."""
    pair = Workers(Path(__file__).with_name("_workers.py"), tmp_path_factory)
    yield pair
    pair.end()


@pytest.fixture
def launch(workers: Workers) -> Launch:
    """``launch(case, **options)``: run a case in two gloo processes (see ``_workers.py``); all their assertions must hold."""
    return workers.run
