"""Two processes: losses that are no numbers, uneven batches, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ._models import adamw, assert_near, distance, make_batch, make_model, train, weights, whole
from ._processes import Launch


@pytest.mark.parametrize("case", ["non_finite_loss", "uneven_batches"])
def test_case(launch: Launch, case: str) -> None:
    launch(f"more_than_gradients.{case}")


def test_checkpoint_of_two_processes_is_read_by_one(launch: Launch, tmp_path: Path) -> None:
    """Weights bit for bit, and an optimizer that goes on as the sharded one did."""
    launch("more_than_gradients.sharded_checkpoint", folder=str(tmp_path))
    model = make_model(seed=1)
    optimizer = adamw(model)
    state, of_optimizer = get_state_dict(model, optimizer)
    loaded: dict[str, Any] = {"model": state, "optimizer": of_optimizer}
    checkpoint.load(loaded, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    expected = torch.load(tmp_path / "expected.pth")
    assert_near(weights(model), expected["saved"], 0.0)
    train(model, optimizer, [make_batch(2)], whole)
    # AdamW divides by the gradient's magnitude, so where that is small it makes a relative 1e-14 of it larger.
    assert_near(weights(model), expected["after"], 1e-10)
    assert distance(expected["after"], expected["saved"]) > 1e-4
