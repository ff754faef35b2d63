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
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from revbifpn.models import RevBiFPNPyramid
from revbifpn.reversible import set_reversible
from revbifpn.reversible.layers import AdditiveLayer

TOLERANCE = 1e-12
BATCH = 4  # of the two processes together
SIDE = 64

CASES: dict[str, Callable[..., None]] = {}


def case(function: Callable[..., None]) -> Callable[..., None]:
    CASES[function.__name__] = function
    return function


def make_model(seed: int = 0, train_norms: bool = False, **options: Any) -> RevBiFPNPyramid:
    """S0's body and neck in float64, its running statistics those of a random batch."""
    torch.manual_seed(seed)
    model = RevBiFPNPyramid("s0", **options).double()
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


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if param.grad is None else param.grad.clone() for name, param in model.named_parameters()}


def weights(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def distance(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> float:
    """Norm of the difference over the norm of what is expected, of the worst tensor. None equals None only."""
    assert actual.keys() == expected.keys()
    worst = 0.0
    for name, want in expected.items():
        got = actual[name]
        assert (got is None) == (want is None), f"{name}: got {'no' if got is None else 'a'} tensor, expected the opposite"
        if got is not None and want is not None:
            worst = max(worst, ((got - want).norm() / want.norm()).item() if want.any() else got.norm().item())
    return worst


def assert_near(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], tolerance: float = TOLERANCE
) -> None:
    error = distance(actual, expected)
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
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


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
    loss_of(DistributedDataParallel(model)(half(batch))).backward()
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
def ddp_overlap() -> None:
    """Buckets are on their way while edges still wait to be run again, in the first step and with rebuilt buckets."""
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
        print(step, before, events.count("reduce"), events.index("reduce"), last_edge)
        assert events.index("reduce") < last_edge / 2, "the first bucket waits for half of the edges"
        assert before > events.count("reduce") / 2, f"only {before} of {events.count('reduce')} buckets before the last edge"
        events.clear()


@case
def ddp_unused_parameters() -> None:
    """Parameters that took no part, in no process or in one of them, have the gradients of one process."""
    model = make_model()
    single, batch = copy.deepcopy(model), make_batch(1)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    for used_by_rank in ((slice(1, None), slice(1, None)), (slice(None), slice(1, None)), (slice(0, 2), slice(2, 4))):
        model.zero_grad()
        single.zero_grad()
        loss_of(ddp(half(batch))[used_by_rank[dist.get_rank()]]).backward()
        for part, used in zip(batch.chunk(dist.get_world_size()), used_by_rank, strict=True):
            (loss_of(single(part)[used]) / dist.get_world_size()).backward()
        unused = [name for name, grad in gradients(single).items() if grad is None]
        print(len(unused), distance(gradients(model), gradients(single)))
        assert_near(gradients(model), gradients(single))
        if used_by_rank[0] == used_by_rank[1]:
            last_layer = f"body.{len(model.body) - 1}.up."
            assert any(name.startswith("neck.0.") for name in unused)
            assert any(name.startswith(last_layer) for name in unused)


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


def statistics(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def shard(model: RevBiFPNPyramid) -> RevBiFPNPyramid:
    """Shard each layer that has parameters, then the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.body:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def full_weights(model: nn.Module) -> dict[str, Tensor | None]:
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
    print("fsdp", distance(full_weights(model), weights(single)))
    assert_near(full_weights(model), weights(single), 1e-9)
    assert distance(full_weights(model), start) > 1e-3


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
    loaded = {"model": state, "optimizer": optimizer_state}
    checkpoint.load(loaded, checkpoint_id=folder)
    set_state_dict(
        fresh, fresh_optimizer, model_state_dict=loaded["model"], optim_state_dict=cast(Any, loaded["optimizer"])
    )
    assert_near(full_weights(fresh), saved, 0.0)

    train(model, optimizer, batches[2:], half)
    train(fresh, fresh_optimizer, batches[2:], half)
    assert_near(full_weights(fresh), full_weights(model), 0.0)
    assert distance(full_weights(fresh), saved) > 1e-4


def main() -> None:
    name, rank, world_size, store, options = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size), timeout=timedelta(seconds=60)
    )
    CASES[name](**json.loads(options))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
