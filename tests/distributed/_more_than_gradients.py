"""Cases of ``test_more_than_gradients.py``, as each of two processes goes through them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.parallel import DistributedDataParallel

from revbifpn.training.hooks import NonFiniteLossError, NonFiniteLossHook
from tests.distributed._models import (
    adamw,
    assert_near,
    distance,
    full_weights,
    half,
    loss_of,
    make_batch,
    make_model,
    sgd,
    shard,
    train,
    weights,
)
from tests.training.test_non_finite_loss import train as train_with_hook

SHARES = (3, 1)  # images of the processes, where these differ


def share(batch: Tensor) -> Tensor:
    return batch.split(SHARES)[dist.get_rank()]


class Trained(BaseModel):
    """The pyramid as MMEngine trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = make_model(train_norms=True)

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": loss_of(self.pyramid(inputs))}


def non_finite_loss() -> None:
    """An image of one process that is infinite: both leave the step out, and what they have then is as if it had not been."""
    batches = torch.stack([half(make_batch(step)) for step in range(3)])
    spoiled = batches.clone()
    spoiled[1, 0, 0, 0, 0] = float("inf") if dist.get_rank() == 1 else 1.0
    results = []
    for inputs in (spoiled, batches[[0, 2]]):
        ddp = MMDistributedDataParallel(Trained(), broadcast_buffers=False)
        train_with_hook(ddp, OptimWrapper(sgd(ddp)), inputs)
        results.append(ddp.state_dict())
    for name, value in results[0].items():
        assert value.isfinite().all(), name
        assert torch.equal(value, results[1][name]), name
    everyones = [torch.empty_like(p := results[0]["module.pyramid.body.1.chains.0.0.f.project.conv.weight"]) for _ in range(2)]
    dist.all_gather(everyones, p)
    assert torch.equal(*everyones)

    ddp = MMDistributedDataParallel(Trained(), broadcast_buffers=False)
    before = weights(ddp)
    what = "loss is nan" if dist.get_rank() == 1 else "another process's loss is not finite"
    hook = NonFiniteLossHook(action="stop")
    with (
        mock.patch("tests.training.test_non_finite_loss.NonFiniteLossHook", return_value=hook),
        pytest.raises(NonFiniteLossError, match=rf"{what}.* at step 1: training stopped"),
    ):
        train_with_hook(ddp, OptimWrapper(sgd(ddp)), spoiled[1:])
    assert_near(weights(ddp), before, 0.0)


def uneven_batches() -> None:
    """The last batch has one image in one process and three in the other, and one process has a batch more."""
    model = make_model()
    single = copy.deepcopy(model)
    whole = [make_batch(step) for step in range(3)]
    mine = [half(whole[0]), share(whole[1]), *([half(whole[2])] if dist.get_rank() == 0 else [])]
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer, of_single = sgd(model), sgd(single)
    with ddp.join(divide_by_initial_world_size=True):
        for batch in mine:
            optimizer.zero_grad()
            loss_of(ddp(batch)).backward()
            optimizer.step()
    for parts in (whole[0].chunk(2), whole[1].split(SHARES), whole[2].chunk(2)[:1]):
        of_single.zero_grad()
        torch.stack([loss_of(single(part)) for part in parts]).sum().div(2).backward()
        of_single.step()
    assert_near(weights(model), weights(single))  # the process that was through first gets the other's at the end
    assert distance(weights(make_model()), weights(single)) > 1e-3


def sharded_checkpoint(folder: str) -> None:
    """Write weights and optimizer of a sharded training, and what another process is to find in them and after a step more."""
    model = shard(make_model())
    optimizer = adamw(model)
    train(model, optimizer, [make_batch(step) for step in range(2)], half)
    state, of_optimizer = get_state_dict(model, optimizer)
    checkpoint.save({"model": state, "optimizer": of_optimizer}, checkpoint_id=Path(folder, "checkpoint"))
    found: dict[str, Any] = {"saved": full_weights(model)}
    train(model, optimizer, [make_batch(2)], half)
    found["after"] = full_weights(model)
    if dist.get_rank() == 0:
        torch.save(found, Path(folder, "expected.pth"))
