"""A loss that is NaN or infinite in one of two processes: both leave the same batches out, and keep the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ._processes import WORLD_SIZE, run_all

# Steps 0 to 2, 3 to 5, and 6 and 7 make an update each. Those of the last batch of an update reduce the gradients.
BAD_STEPS = {
    "first": [[0], []],
    "middle": [[], [4]],
    "last": [[2], []],
    "last-of-the-training": [[], [7]],
    "both-at-different-steps": [[0, 5], [1, 2]],  # no finite batch is left for the first update
}


@pytest.mark.parametrize("bad_steps", BAD_STEPS.values(), ids=BAD_STEPS)
def test_processes_keep_the_same_weights(bad_steps: list[list[int]], tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("_non_finite_loss.py"))
    shared = [str(WORLD_SIZE), str(tmp_path / "store"), json.dumps(bad_steps)]
    run_all([[sys.executable, script, str(rank), *shared] for rank in range(WORLD_SIZE)], tmp_path, timeout=120)
