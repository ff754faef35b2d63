"""A loss that is NaN or infinite in one of two processes: both leave the same batches out, and keep the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ._processes import WORLD_SIZE, run_all

CASES = ("first", "middle", "last", "last-of-the-training", "both-at-different-steps", "average")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which both processes note the cases they have gone through."""
    folder = tmp_path_factory.mktemp("processes")
    script = str(Path(__file__).with_name("_non_finite_loss.py"))
    run_all([[sys.executable, script, str(rank), str(folder)] for rank in range(WORLD_SIZE)], folder, timeout=240)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_processes_keep_the_same_weights(done: Path, case: str) -> None:
    assert all((done / f"{case}-{rank}").exists() for rank in range(WORLD_SIZE))
