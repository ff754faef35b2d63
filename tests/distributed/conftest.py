from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ._processes import Launch, Workers


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two gloo processes for all cases of a module: starting them takes longer than most cases."""
    pair = Workers(Path(__file__).with_name("_workers.py"), tmp_path_factory)
    yield pair
    pair.end()


@pytest.fixture
def launch(workers: Workers) -> Launch:
    """``launch(case, **options)``: run a case of ``_workers.py`` in two gloo processes; all their assertions must hold."""
    return workers.run
