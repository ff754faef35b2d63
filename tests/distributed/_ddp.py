"""Cases of ``test_ddp.py``, as each of two processes goes through them."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from revbifpn.models import RevBiFPNPyramid
from revbifpn.reversible import set_reversible
from revbifpn.reversible.additive import AdditiveLayer
from tests.distributed._models import (
    Tensors,
    assert_near,
    distance,
    gradients,
    half,
    loss_of,
    make_batch,
    make_model,
    sgd,
    train,
    weights,
    whole,
)
from tests.distributed._norm_kernels import forward_on_cpu, register_on_cpu


def gradients_of_one_process(**options: Any) -> None:
    """DDP's gradients are those of one process on the joined batch, and not those of this process's half."""
    model = make_model(**options)
    single, alone, batch = copy.deepcopy(model), copy.deepcopy(model), make_batch(1)
    loss_of(single(batch)).backward()
    loss_of(alone(half(batch))).backward()
    ddp = DistributedDataParallel(model)
    loss_of(ddp(half(batch))).backward()
    assert_near(gradients(model), gradients(single))
    assert distance(gradients(alone), gradients(single)) > 1e-3


def training_with_options(ddp: dict[str, Any]) -> None:
    """After some steps under DDP with the options ``ddp`` the weights are those of one process."""
    model = make_model()
    single, start = copy.deepcopy(model), weights(model)
    batches = [make_batch(step) for step in range(3)]
    train(single, sgd(single), batches, whole)
    train(DistributedDataParallel(model, **ddp), sgd(model), batches, half)
    assert_near(weights(model), weights(single))
    assert distance(weights(model), start) > 1e-3


def detection_backbone(**options: Any) -> None:
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


def overlap() -> None:
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


def unused_parameters(inside: bool) -> None:
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


def accumulation() -> None:
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


def running_statistics() -> None:
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


SHARES = (3, 1)  # images of the processes, where these differ


def share(batch: Tensor) -> Tensor:
    return batch.split(SHARES)[dist.get_rank()]


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
