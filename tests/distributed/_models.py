"""What the cases of distributed tests share: a model, batches, and how far two sets of tensors are apart.

Every case builds the same model and the same joined batch in both processes. A process trains on its half of the batch,
and compares what comes out with a plain copy of the model that it trains on the whole batch.

Norms are in eval mode where the result must not depend on batch statistics. All is float64, so that tolerances can be
tight: two processes add the same numbers as one in another order, and convolutions may choose other kernels for another
batch size. That leaves differences of some 1e-15 in gradients; ``TOLERANCE`` allows a few hundred times that for other
processors' kernels, and is nine orders below what a missing or wrongly scaled reduction changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from revbifpn.models import RevBiFPNPyramid, Variant
from tests.networks import SMALL

TOLERANCE = 1e-12
BATCH = 4  # of the two processes together
SIDE = 64

Tensors = Mapping[str, Tensor | None]


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
