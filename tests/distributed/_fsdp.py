"""Cases of ``test_fsdp.py``, as each of two processes goes through them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.distributed._models import (
    OPTIMIZERS,
    Tensors,
    adamw,
    assert_near,
    distance,
    full_weights,
    half,
    loss_of,
    make_batch,
    make_model,
    shard,
    train,
    weights,
    whole,
)


def training(optimizer: str, **options: Any) -> None:
    """Sharded by layer, the model trains as one process does, and keeps no layer unsharded between forward and backward."""
    model = make_model(**options)
    single, start = copy.deepcopy(model), weights(model)
    batches = [make_batch(step) for step in range(3)]
    shard(model)
    levels = model(half(batches[0]))
    for name, param in model.body.named_parameters():
        assert isinstance(param, DTensor), f"{name} is not sharded again after forward"
        assert param.to_local().numel() < param.numel(), f"{name} is not split"
    loss_of(levels).backward()
    make_optimizer = OPTIMIZERS[optimizer]
    train(model, make_optimizer(model), batches, half)
    train(single, make_optimizer(single), batches, whole)
    # AdamW divides by the gradient's magnitude, so where that is small it makes a relative 1e-14 of it larger.
    assert_near(full_weights(model), weights(single), 1e-10)
    assert distance(full_weights(model), start) > 1e-3


def mixed_precision(reduce_float32: bool, frozen: int) -> None:
    """With parameters in bfloat16 for the passes, gradients are those of stored mode under the same policy, bit for bit.

    FSDP casts what goes into each layer; streams stay in float32 all the same. The body's first ``frozen`` layers are frozen.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32 if reduce_float32 else None, output_dtype=torch.float32
    )
    found: list[Tensors] = []
    for half_precision, reversible in ((True, True), (True, False), (False, True)):
        model = make_model(train_norms=True, reversible=reversible).float()
        if half_precision:  # torch's batch norm wants its statistics in the dtype of its weights, which FSDP does not cast
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean, norm.running_var = norm.running_mean.bfloat16(), norm.running_var.bfloat16()
        for layer in list(model.body)[:frozen]:
            layer.requires_grad_(False)
        streams: set[torch.dtype] = set()
        shard(model, **({"mp_policy": policy} if half_precision else {}))
        for layer in model.body:
            layer.register_forward_hook(lambda m, args, out, streams=streams: streams.update(s.dtype for s in out))
        loss_of(model(half(make_batch(1).float()))).backward()
        assert streams == {torch.float32}
        grads = {n: cast(DTensor, p.grad).full_tensor() for n, p in model.named_parameters() if p.requires_grad}
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        found.append(grads)
    ours, stored, float32 = found
    assert_near(ours, stored, 0.0)
    assert distance(ours, float32) > 1e-3  # bfloat16 was at work


def of_recomputed_modules() -> None:
    """Sharding what is run again as a whole would silently train nothing in it, so it is refused."""
    model = make_model()
    for module in model.neck:
        fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    loss = loss_of(shard(model)(half(make_batch(1))))
    with pytest.raises(RuntimeError, match="shard reversible layers"):
        loss.backward()


def checkpoint_of_shards(folder: str) -> None:
    """Sharded weights and optimizer state, saved and loaded into a fresh model, go on bit for bit."""
    batches = [make_batch(step) for step in range(4)]
    model = shard(make_model())
    optimizer = adamw(model)
    train(model, optimizer, batches[:2], half)
    saved = full_weights(model)
    state, optimizer_state = get_state_dict(model, optimizer)
    checkpoint.save({"model": state, "optimizer": optimizer_state}, checkpoint_id=folder)

    fresh = shard(make_model(seed=1))
    fresh_optimizer = adamw(fresh)
    assert distance(full_weights(fresh), saved) > 1e-3
    state, optimizer_state = get_state_dict(fresh, fresh_optimizer)
    loaded: dict[str, Any] = {"model": state, "optimizer": optimizer_state}
    checkpoint.load(loaded, checkpoint_id=folder)
    set_state_dict(fresh, fresh_optimizer, model_state_dict=loaded["model"], optim_state_dict=cast(Any, loaded["optimizer"]))
    assert_near(full_weights(fresh), saved, 0.0)

    train(model, optimizer, batches[2:], half)
    train(fresh, fresh_optimizer, batches[2:], half)
    assert_near(full_weights(fresh), full_weights(model), 0.0)
    assert distance(full_weights(fresh), saved) > 1e-4


def checkpoint_for_one_process(folder: str) -> None:
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
