"""Two processes, started once for all cases: losses that are no numbers, uneven batches, shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ._processes import WORLD_SIZE, run_all


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have gone through all cases; what those promise is in their docstrings."""
    folder = tmp_path_factory.mktemp("processes")
    script = str(Path(__file__).with_name("_more_than_gradients.py"))
    commands = [[sys.executable, script, str(folder), str(rank), str(WORLD_SIZE)] for rank in range(WORLD_SIZE)]
    run_all(commands, folder, timeout=240)
    return folder


@pytest.mark.parametrize("case", ["non_finite_loss", "uneven_batches"])
def test_case(done: Path, case: str) -> None:
    assert all((done / f"{case}-{rank}").exists() for rank in range(WORLD_SIZE))


def test_checkpoint_of_two_processes_is_read_by_one(done: Path) -> None:
    """Weights bit for bit, and an optimizer that goes on as the sharded one did."""
    from ._workers import adamw, assert_near, distance, make_batch, make_model, train, weights, whole

    model = make_model(seed=1)
    optimizer = adamw(model)
    state, of_optimizer = get_state_dict(model, optimizer)
    loaded: dict[str, Any] = {"model": state, "optimizer": of_optimizer}
    checkpoint.load(loaded, checkpoint_id=done / "checkpoint", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    expected = torch.load(done / "expected.pth")
    assert_near(weights(model), expected["saved"], 0.0)
    train(model, optimizer, [make_batch(2)], whole)
    # AdamW divides by the gradient's magnitude, so where that is small it makes a relative 1e-14 of it larger.
    assert_near(weights(model), expected["after"], 1e-10)
    assert distance(expected["after"], expected["saved"]) > 1e-4
