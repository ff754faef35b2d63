"""FSDP2 over two gloo processes; what each test promises is the docstring of its case in ``_fsdp.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ._models import adamw, assert_near, distance, make_batch, make_model, train, weights, whole
from ._processes import Launch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_equals_one_process(launch: Launch, optimizer: str) -> None:
    launch("fsdp.training", optimizer=optimizer)


def test_exact_mode(launch: Launch) -> None:
    launch("fsdp.training", optimizer="sgd", exact=True)


@pytest.mark.parametrize(("reduce_float32", "frozen"), [(True, 0), (False, 3)])
def test_mixed_precision_equals_stored_mode(launch: Launch, reduce_float32: bool, frozen: int) -> None:
    launch("fsdp.mixed_precision", reduce_float32=reduce_float32, frozen=frozen)


def test_checkpoint_goes_on_bit_for_bit(launch: Launch, tmp_path: Path) -> None:
    launch("fsdp.checkpoint_of_shards", folder=str(tmp_path / "checkpoint"))


def test_sharding_recomputed_modules_is_refused(launch: Launch) -> None:
    launch("fsdp.of_recomputed_modules")


def test_checkpoint_of_two_processes_is_read_by_one(launch: Launch, tmp_path: Path) -> None:
    """Weights bit for bit, and an optimizer that goes on as the sharded one did."""
    launch("fsdp.checkpoint_for_one_process", folder=str(tmp_path))
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
