from __future__ import annotations

import sys
from pathlib import Path

from tests.distributed._processes import WORLD_SIZE, run_all


def test_two_processes_have_one_mask(tmp_path: Path) -> None:
    script = Path(__file__).with_name("_ddp_worker.py")
    commands = [
        [sys.executable, str(script), str(rank), str(WORLD_SIZE), str(tmp_path / "store")] for rank in range(WORLD_SIZE)
    ]
    run_all(commands, tmp_path, timeout=150)
