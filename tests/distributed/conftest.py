from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORLD_SIZE = 2
Launch = Callable[..., None]


def wait_for_all(processes: list[subprocess.Popen[bytes]], logs: list[Path], timeout: float) -> None:
    """Wait until all processes have ended well; at the first failure, or after ``timeout`` seconds, end them all.

    Raises:
        AssertionError: with the output of the process that failed first (of all, after a timeout).
    """
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes):
            failed = [i for i, process in enumerate(processes) if process.poll() not in (None, 0)]
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        bad = [i for i, process in enumerate(processes) if process.poll() not in (None, 0)]
        late = [i for i, process in enumerate(processes) if process.poll() is None]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    if bad or late:
        what = f"rank {bad} failed" if bad else f"rank {late} did not end within {timeout:.0f} s"
        output = "\n".join(f"--- rank {i}\n{logs[i].read_text(errors='replace')[-6000:]}" for i in bad or late)
        pytest.fail(f"{what}\n{output}", pytrace=False)


def environment() -> dict[str, str]:
    """This process's environment with one thread for each worker, and without what a launcher may have left in it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """``launch(case, **options)``: run a case of ``_workers.py`` in two gloo processes; all their assertions must hold."""

    def run(case: str, timeout: float = 120.0, **options: object) -> None:
        script, store = Path(__file__).with_name("_workers.py"), tmp_path / "store"
        logs = [tmp_path / f"rank{rank}.log" for rank in range(WORLD_SIZE)]
        with contextlib.ExitStack() as stack:
            processes = [
                subprocess.Popen(
                    [sys.executable, str(script), case, str(rank), str(WORLD_SIZE), str(store), json.dumps(options)],
                    stdout=stack.enter_context(logs[rank].open("wb")),
                    stderr=subprocess.STDOUT,
                    env=environment(),
                    cwd=ROOT,
                )
                for rank in range(WORLD_SIZE)
            ]
            wait_for_all(processes, logs, timeout)

    return run
