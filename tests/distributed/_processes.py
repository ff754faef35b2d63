"""Starting processes, and saying clearly which of them failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
WORLD_SIZE = 2

#: torchrun, at a port that it finds free by itself.
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]


class Launch(Protocol):
    """The ``launch`` fixture."""

    def __call__(self, case: str, **options: object) -> None: ...


def run_all(commands: list[list[str]], folder: Path, timeout: float, **variables: str) -> None:
    """Run the commands side by side from the project's root, one thread each; their output goes to ``folder``.

    At the first failure, or after ``timeout`` seconds, all are ended and the test fails with the output of the guilty ones.
    """
    logs = [folder / f"process{i}.log" for i in range(len(commands))]
    processes: list[subprocess.Popen[str]] = []
    try:
        for command, log in zip(commands, logs, strict=True):
            processes.append(_start(command, log, **variables))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not _failed(processes) and any(p.poll() is None for p in processes):
            time.sleep(0.05)
        failed = _failed(processes)
        late = [i for i, process in enumerate(processes) if process.poll() is None]
    finally:
        _end(processes)
    if failed or late:
        _fail(failed, late, logs, timeout)


class Workers:
    """Processes of a script that go through one case after the other, and are started anew after one that failed.

    The script is given a folder, its rank, and the number of processes. A case is a line of JSON on its standard input, with
    its name and options; the n-th is done when both processes have made their file ``done<n>-<rank>`` in the folder.
    """

    def __init__(self, script: Path, folders: pytest.TempPathFactory) -> None:
        self.script, self.folders = script, folders
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Start both processes, in a folder of their own."""
        self.folder, self.cases = self.folders.mktemp("workers"), 0
        self.logs = [self.folder / f"process{rank}.log" for rank in range(WORLD_SIZE)]
        shared = [sys.executable, str(self.script), str(self.folder)]
        self.processes = [
            _start([*shared, str(rank), str(WORLD_SIZE)], log, stdin=subprocess.PIPE) for rank, log in enumerate(self.logs)
        ]

    def run(self, case: str, timeout: float = 150, **options: object) -> None:
        """Hand out a case, and wait until both are through; the test fails if one is not within ``timeout`` seconds."""
        if not self.processes:
            self.start()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([case, options]) + "\n")
            process.stdin.flush()
        number, deadline = self.cases, time.monotonic() + timeout
        self.cases += 1
        while (left := self._unfinished(number)) and time.monotonic() < deadline and not self._ended():
            time.sleep(0.02)
        if left:
            failed = self._ended()
            self.end()
            _fail(failed, [] if failed else left, self.logs, timeout)

    def end(self) -> None:
        """End both processes."""
        _end(self.processes)
        self.processes = []

    def _unfinished(self, number: int) -> list[int]:
        return [rank for rank in range(WORLD_SIZE) if not (self.folder / f"done{number}-{rank}").exists()]

    def _ended(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes) if process.poll() is not None]


def _start(command: list[str], log: Path, stdin: int | None = None, **variables: str) -> subprocess.Popen[str]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, env=_environment(variables), cwd=ROOT, text=True
        )


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()  # a launcher ends its own processes then
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _fail(failed: list[int], late: list[int], logs: list[Path], timeout: float) -> None:
    what = f"process {failed} failed" if failed else f"process {late} did not end within {timeout:.0f} s"
    output_of_guilty = "\n".join(f"--- process {i}\n{logs[i].read_text(errors='replace')[-8000:]}" for i in failed or late)
    pytest.fail(f"{what}\n{output_of_guilty}", pytrace=False)


def _failed(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [i for i, process in enumerate(processes) if process.poll() not in (None, 0)]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's, without what a launcher may have left in it."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in left}
    paths = [variables.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    python_path = os.pathsep.join(filter(None, paths))
    return {**kept, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
