"""Starting processes, and saying clearly which of them failed."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
WORLD_SIZE = 2


class Launch(Protocol):
    """The ``launch`` fixture."""

    def __call__(self, case: str, **options: object) -> None: ...


def run_all(commands: list[list[str]], folder: Path, timeout: float, **variables: str) -> None:
    """Run the commands side by side from the project's root, one thread each; their output goes to ``folder``.

    At the first failure, or after ``timeout`` seconds, all are ended and the test fails with the output of the guilty ones.
    """
    logs = [folder / f"process{i}.log" for i in range(len(commands))]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                processes.append(
                    subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(variables), cwd=ROOT)
                )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not _failed(processes) and any(p.poll() is None for p in processes):
            time.sleep(0.05)
        failed = _failed(processes)
        late = [i for i, process in enumerate(processes) if process.poll() is None]
    finally:
        for process in processes:
            process.terminate()  # a launcher ends its own processes then
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if failed or late:
        what = f"process {failed} failed" if failed else f"process {late} did not end within {timeout:.0f} s"
        output_of_guilty = "\n".join(f"--- process {i}\n{logs[i].read_text(errors='replace')[-8000:]}" for i in failed or late)
        pytest.fail(f"{what}\n{output_of_guilty}", pytrace=False)


def _failed(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [i for i, process in enumerate(processes) if process.poll() not in (None, 0)]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's, without what a launcher may have left in it."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in left}
    paths = [variables.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    python_path = os.pathsep.join(filter(None, paths))
    return {**kept, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
