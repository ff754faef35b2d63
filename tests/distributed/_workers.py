"""What each of the two processes of a distributed test does; started by the ``launch`` fixture, not by pytest.

Every case builds the same model and the same joined batch in both processes. A process trains on its half of the batch,
and compares what comes out with a plain copy of the model that it trains on the whole batch.

Norms are in eval mode where the result must not depend on batch statistics. All is float64, so that tolerances can be
tight: two processes add the same numbers as one in another order, and convolutions may choose other kernels for another
batch size. That leaves differences of some 1e-15 in gradients; ``TOLERANCE`` allows a few hundred times that for other
processors' kernels, and is nine orders below what a missing or wrongly scaled reduction changes.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from revbifpn.models import RevBiFPNPyramid, Variant
from revbifpn.reversible import ExactReversalWarning, set_reversible
from revbifpn.reversible.additive import AdditiveLayer
from tests.distributed._norm_kernels import forward_on_cpu, register_on_cpu
from tests.networks import SMALL

TOLERANCE = 1e-12
BATCH = 4  # of the two processes together
SIDE = 64

Tensors = Mapping[str, Tensor | None]

CASES: dict[str, Callable[..., None]] = {}


def case(function: Callable[..., None]) -> Callable[..., None]:
    CASES[function.__name__] = function
    return function


def make_model(
    variant: str | Variant = SMALL,
    seed: int = 0,
    train_norms: bool = False,
    kind: type[RevBiFPNPyramid] = RevBiFPNPyramid,
    **options: Any,
) -> RevBiFPNPyramid:
    """A variant's body and neck in float64, its running statistics those of a random batch."""
    torch.manual_seed(seed)
    model = kind(variant, **options).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(make_batch(seed + 1000))
    for norm in norms:
        norm.momentum = 0.1
        norm.train(train_norms)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
    return model


def make_batch(seed: int) -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def half(batch: Tensor) -> Tensor:
    """This process's share of a batch."""
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def loss_of(levels: tuple[Tensor, ...]) -> Tensor:
    """A mean over the batch, so that the mean of two halves' losses is the whole's."""
    return torch.stack([(level.square() + level.sin()).mean() for level in levels]).sum()


def gradients(model: nn.Module) -> Tensors:
    return {name: None if param.grad is None else param.grad.clone() for name, param in model.named_parameters()}


def weights(model: nn.Module) -> Tensors:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def distance(actual: Tensors, expected: Tensors) -> float:
    """Norm of the difference over the norm of what is expected, of the worst tensor. None equals None only.

    A norm counts as a thousandth of the largest at least: some gradients and means are zero but for rounding, those of what
    a later batch norm takes out again.
    """
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(want.norm().item() for want in expected.values() if want is not None)
    worst = 0.0
    for name, want in expected.items():
        got = actual[name]
        assert (got is None) == (want is None), f"{name}: got {'no' if got is None else 'a'} tensor, expected the opposite"
        if got is not None and want is not None:
            worst = max(worst, (got - want).norm().item() / max(want.norm().item(), floor))
    return worst


def assert_near(actual: Tensors, expected: Tensors, tolerance: float = TOLERANCE) -> None:
    error = distance(actual, expected)
    print(f"relative difference {error:.3g}, allowed {tolerance:.3g}")
    assert error <= tolerance, f"relative difference {error:.3g}, allowed {tolerance:.3g}"


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Tensor], share: Callable[[Tensor], Tensor]
) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model(share(batch))).backward()
        optimizer.step()


def whole(batch: Tensor) -> Tensor:
    return batch


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


@case
def ddp_gradients(**options: Any) -> None:
    """DDP's gradients are those of one process on the joined batch, and not those of this process's half."""
    model = make_model(**options)
    single, alone, batch = copy.deepcopy(model), copy.deepcopy(model), make_batch(1)
    loss_of(single(batch)).backward()
    loss_of(alone(half(batch))).backward()
    ddp = DistributedDataParallel(model)
    loss_of(ddp(half(batch))).backward()
    assert_near(gradients(model), gradients(single))
    assert distance(gradients(alone), gradients(single)) > 1e-3


@case
def ddp_training(ddp: dict[str, Any]) -> None:
    """After some steps under DDP with the options ``ddp`` the weights are those of one process."""
    model = make_model()
    single, start = copy.deepcopy(model), weights(model)
    batches = [make_batch(step) for step in range(3)]
    train(single, sgd(single), batches, whole)
    train(DistributedDataParallel(model, **ddp), sgd(model), batches, half)
    assert_near(weights(model), weights(single))
    assert distance(weights(model), start) > 1e-3


@case
def ddp_detection_backbone(**options: Any) -> None:
    """A detector's backbone with some levels left out or frozen trains as one process does; no parameter is left unused.

    DDP without ``find_unused_parameters`` refuses the second step if one was.
    """
    from revbifpn.integrations.mmdet import RevBiFPNBackbone

    model = make_model(kind=RevBiFPNBackbone, **options)
    single, start = copy.deepcopy(model), weights(model)
    batches = [make_batch(step) for step in range(3)]
    train(single, sgd(single), batches, whole)
    train(DistributedDataParallel(model), sgd(model), batches, half)
    assert_near(weights(model), weights(single))
    assert distance(weights(model), start) > 1e-3


@case
def ddp_overlap() -> None:
    """Buckets are on their way while edges still wait to be run again.

    DDP has one bucket in the first step, and makes its buckets from the order in which that step's gradients came.
    """
    model = make_model()
    events: list[str] = []
    for layer in model.body:
        for coupling in layer.couplings() if isinstance(layer, AdditiveLayer) else ():
            coupling.edge.register_forward_hook(lambda *_: events.append("edge"))

    def reduce(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
        events.append("reduce")
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    ddp = DistributedDataParallel(model, bucket_cap_mb=0.1)
    ddp.register_comm_hook(None, reduce)
    for step in range(3):
        loss = loss_of(ddp(half(make_batch(step))))
        num_edges = len(events)
        assert num_edges > 0
        assert "reduce" not in events
        events.clear()
        loss.backward()
        assert events.count("edge") == num_edges  # each edge is run once more
        last_edge = max(i for i, event in enumerate(events) if event == "edge")
        before = events[:last_edge].count("reduce")
        if step > 0:
            assert events.index("reduce") < num_edges / 2, "the first bucket waits for half of the edges"
            assert before > events.count("reduce") / 2, f"{before} of {events.count('reduce')} buckets before the last edge"
        events.clear()


class SomeLevels(nn.Module):
    """The pyramid's levels that were asked for."""

    def __init__(self, pyramid: RevBiFPNPyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, image: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        levels: tuple[Tensor, ...] = self.pyramid(image)
        return levels[first:last]


@case
def ddp_unused_parameters(inside: bool) -> None:
    """Parameters that take no part, in no process or in one of them, get what they get in one process: None, or a gradient.

    A level is left out ``inside`` of the model, where DDP finds it missing in the graph, or by the loss, where it does not.
    """
    pyramid = make_model()
    model: nn.Module = SomeLevels(pyramid)
    single, batch = copy.deepcopy(model), make_batch(1)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)

    def loss(net: nn.Module, image: Tensor, first: int, last: int) -> Tensor:
        return loss_of(net(image, first, last) if inside else net(image, 0, 4)[first:last])

    for used_by_rank in (((1, 4), (1, 4)), ((0, 4), (1, 4)), ((0, 2), (2, 4))):
        model.zero_grad()
        single.zero_grad()
        loss(ddp, half(batch), *used_by_rank[dist.get_rank()]).backward()
        for part, used in zip(batch.chunk(dist.get_world_size()), used_by_rank, strict=True):
            (loss(single, part, *used) / dist.get_world_size()).backward()
        assert_near(gradients(model), gradients(single))
        if used_by_rank[0] == used_by_rank[1]:
            unused = [name for name, grad in gradients(single).items() if grad is None]
            assert any(name.startswith("pyramid.neck.0.") for name in unused)
            assert any(name.startswith(f"pyramid.body.{len(pyramid.body) - 1}.up.") for name in unused)


@case
def ddp_accumulation() -> None:
    """Micro-batches gathered under ``no_sync`` and reduced with the last one give the gradients of one process."""
    model = make_model()
    single = copy.deepcopy(model)
    ddp = DistributedDataParallel(model)
    for step in range(2):
        *first, last = [make_batch(10 * step + i) for i in range(3)]
        model.zero_grad()
        single.zero_grad()
        with ddp.no_sync():
            for batch in first:
                loss_of(ddp(half(batch))).backward()
        loss_of(ddp(half(last))).backward()
        for batch in (*first, last):
            loss_of(single(batch)).backward()
        assert_near(gradients(model), gradients(single))


@case
def ddp_running_statistics() -> None:
    """Training-mode norms under DDP move their statistics once a step, to the values of stored mode exactly."""
    model = make_model(train_norms=True)
    stored = set_reversible(copy.deepcopy(model), False)
    start = statistics(model)
    batches = [make_batch(step) for step in range(3)]
    for net in (model, stored):
        ddp = DistributedDataParallel(net)
        for batch in batches:
            loss_of(ddp(half(batch))).backward()
    counts = {name: buffer.item() for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts
    assert set(counts.values()) == {len(batches)}, counts
    # No weight has changed, and both modes compute the same forward values.
    assert_near(statistics(model), statistics(stored), 0.0)
    assert distance(statistics(model), start) > 1e-3


def statistics(model: nn.Module) -> Tensors:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


@case
def sync_batch_norm() -> None:
    """With SyncBatchNorm, two processes in reversible mode do what one does with BatchNorm on the joined batch.

    Their shares differ, so that each process's statistics count by the number of its values.
    """
    model = make_model(train_norms=True)
    single, alone = set_reversible(copy.deepcopy(model), False), copy.deepcopy(model)
    ddp = DistributedDataParallel(model)  # before the conversion: on CPU it refuses models with SyncBatchNorm
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    num_norms = sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    kernels = register_on_cpu()
    with (
        mock.patch.object(nn.SyncBatchNorm, "forward", forward_on_cpu),
        mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as gather,
    ):
        for step in (1, 2):
            batch = make_batch(step)
            share = batch[:3] if dist.get_rank() == 0 else batch[3:]
            of_mean = dist.get_world_size() * len(share) / len(batch)  # DDP's mean over processes is then that over images
            for net in (synced, single, alone):
                net.zero_grad()
            loss_of(single(batch)).backward()
            (loss_of(alone(share)) * of_mean).backward()
            gather.reset_mock()
            loss = loss_of(ddp(share)) * of_mean
            assert gather.call_count == num_norms > 0
            loss.backward()
            assert gather.call_count == num_norms  # the replay gathers nothing
            # Batch norm's gradient is a difference of sums over the batch, which costs it a digit or two.
            assert_near(statistics(synced), statistics(single))
            assert_near(gradients(synced), gradients(single), 1e-11)
            assert distance(gradients(alone), gradients(single)) > 1e-3
    del kernels
    counts = {buffer.item() for name, buffer in synced.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {2}


def shard(model: RevBiFPNPyramid, **options: Any) -> RevBiFPNPyramid:
    """Shard each layer that has parameters, then the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.body:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, **options)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, **options)
    return model


def full_weights(model: nn.Module) -> Tensors:
    return {name: cast(DTensor, param).full_tensor().detach().clone() for name, param in model.named_parameters()}


@case
def fsdp_training(optimizer: str, **options: Any) -> None:
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


@case
def fsdp_mixed_precision(reduce_float32: bool, frozen: int) -> None:
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


@case
def fsdp_of_recomputed_modules() -> None:
    """Sharding what is run again as a whole would silently train nothing in it, so it is refused."""
    model = make_model()
    for module in model.neck:
        fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    loss = loss_of(shard(model)(half(make_batch(1))))
    with pytest.raises(RuntimeError, match="shard reversible layers"):
        loss.backward()


@case
def fsdp_checkpoint(folder: str) -> None:
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


def main() -> None:
    """Go through the cases that come in, each in a process group of its own; a file says that one is done."""
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("error", ExactReversalWarning)
    for number, line in enumerate(sys.stdin):
        name, options = json.loads(line)
        store, timeout = f"file://{folder}/store{number}", timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout)
        CASES[name](**options)
        dist.destroy_process_group()
        (folder / f"done{number}-{rank}").touch()


if __name__ == "__main__":
    main()
