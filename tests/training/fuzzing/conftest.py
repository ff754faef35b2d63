"""What comes from outside, spoiled in many ways: one line and exit status 2, or a correct result; nothing run or written.

Each test runs the command lines in this process on all of its cases and lists those that fail. Trainings and tests end where
they would begin to compute.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from torch import Tensor

import revbifpn.training.cli.test
import revbifpn.training.cli.train
from revbifpn.training import runner as runners
from tests.training.classification.conftest import write_config

MODEL, CLASSES = "test_resnet", 3
MAINS = {"train": revbifpn.training.cli.train.main, "test": revbifpn.training.cli.test.main}


class Tools:
    """Runs the command lines in this process.

    Attributes:
        built: the Runner that the last one would have trained or tested with; None if it came to no such thing.
        said: what it said on stderr.
        cases: how many were run.
        failures: what was wrong, case by case.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        self.work, self.trace = folder / "work", folder / "executed"
        self.built: Any = None
        self.said = ""
        self.cases = 0
        self.failures: list[str] = []

    def stop(self, runner: Any) -> dict[str, float]:
        self.built = runner
        return {}

    def check(self, case: str, tool: str, *arguments: object, correct: Callable[[], object] = lambda: True) -> None:
        """Run a command line; ``correct()`` judges what it has built, if it is not refused."""
        for kind in (Visualizer, MMLogger, MessageHub, DefaultScope):
            kind._instance_dict.clear()
        before = self.files()
        self.built = None
        self.cases += 1
        self.monkeypatch.setattr(sys, "argv", [f"revbifpn-{tool}", *map(str, arguments)])
        self.capsys.readouterr()
        status: object = 0
        try:
            MAINS[tool]()
        except SystemExit as stop:
            status = stop.code
        except Exception as error:
            self.failures.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
            return
        self.said = said = self.capsys.readouterr().err
        if status == 0:
            if self.built is None or not correct():
                self.failures.append(f"{case}: accepted, with a wrong result")
        elif status != 2:
            self.failures.append(f"{case}: exit status {status}: {said[-300:]}")
        else:
            lines = [line for line in said.splitlines() if line.startswith((f"{tool}: ", f"revbifpn-{tool}: error: "))]
            if len(lines) != 1 or "Traceback" in said or len(lines[0]) < len(tool) + 12:
                self.failures.append(f"{case}: said {said[-300:]!r}")
        if self.files() != before:
            self.failures.append(f"{case}: wrote {self.files() ^ before}")

    def files(self) -> set[tuple[str, int]]:
        """All files with their times, but for the work folder's."""
        found = (path for path in self.folder.rglob("*") if self.work not in path.parents and path != self.work)
        return {(str(path), path.stat().st_mtime_ns) for path in found}

    def done(self, least: int) -> None:
        assert not self.trace.exists(), "something was executed"
        assert not self.failures, "\n".join([f"{len(self.failures)} of {self.cases}:", *self.failures])
        assert self.cases >= least


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tools:
    tools = Tools(monkeypatch, capsys, tmp_path)
    for method in ("train", "test"):
        monkeypatch.setattr(runners.SafeRunner, method, lambda runner: tools.stop(runner))
    monkeypatch.chdir(tmp_path)  # what is written without a folder's name is seen
    return tools


@pytest.fixture
def config(own_folder: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.py", own_folder, tmp_path / "work", MODEL, "visualizer = dict(vis_backends=[])")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(MODEL, num_classes=CLASSES).state_dict()
    return state


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def flipped(content: bytes, position: int, bit: int) -> bytes:
    spoiled = bytearray(content)
    spoiled[position] ^= 1 << bit
    return bytes(spoiled)
