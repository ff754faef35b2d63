from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ._processes import WORLD_SIZE, Launch, run_all


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """``launch(case, **options)``: run a case of ``_workers.py`` in two gloo processes; all their assertions must hold."""

    def run(case: str, **options: object) -> None:
        script, store = Path(__file__).with_name("_workers.py"), tmp_path / "store"
        shared = [str(WORLD_SIZE), str(store), json.dumps(options)]
        commands = [[sys.executable, str(script), case, str(rank), *shared] for rank in range(WORLD_SIZE)]
        run_all(commands, tmp_path, timeout=150)

    return run
