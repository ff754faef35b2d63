r"""Sparse-IFT's transformations of one layer (arXiv 2303.11525): the dense layer's operations, and more capacity.

With ``theta`` the layer's weight, ``z`` its input, ``s`` the fraction of zeros, ``K`` the columns of the weight
(``k * k * f_in`` of a convolution, ``D_in`` of a linear layer) and ``f`` its outputs:

.. code-block:: text

    wide         both widths times sqrt(1 / (1 - s)); the weight has s zeros
    parallel     sum_j act(norm(theta_j z)), round(1 / (1 - s)) branches, each with s zeros
    factorized   V act(norm(U z)), U: K -> r and V: r -> f with s zeros, r = K f / ((1 - s) (K + f)), rounded up
    doped        theta z + V U z, theta with s zeros, U: K -> r and V: r -> f dense, r = s K f / (K + f), rounded down

A factorized or doped convolution has U with its kernel and stride, and V with a kernel of 1x1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

KINDS = ("wide", "parallel", "factorized", "doped")


def check_kind(kind: str) -> str:
    """Return a kind of transformation.

    Raises:
        ValueError: if there is none of this name.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of Sparse-IFT must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def width_factor(sparsity: float) -> float:
    """By how much a wide layer is wider."""
    return math.sqrt(1 / (1 - sparsity))


def num_branches(sparsity: float) -> int:
    """Branches of a parallel layer."""
    return round(1 / (1 - sparsity))


def factorized_rank(columns: int, outputs: int, sparsity: float) -> int:
    """Inner width of a factorized layer with ``columns`` inputs of each of its ``outputs``."""
    return math.ceil(columns * outputs / ((1 - sparsity) * (columns + outputs)))


def doped_rank(columns: int, outputs: int, sparsity: float) -> int:
    """Rank of the dense path of a doped layer."""
    return math.floor(sparsity * columns * outputs / (columns + outputs))


class Parallel(nn.Module):
    """The sum of branches of equal shape: Sparse Parallel."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        out: Tensor = first(x)
        for branch in others:
            out = out + branch(x)
        return out


class Factorized(nn.Sequential):
    """``up(act(norm(down(x))))``: Sparse Factorized, or without norm and act the low-rank path of Sparse Doped."""

    def __init__(self, down: nn.Module, up: nn.Module, *between: nn.Module) -> None:
        super().__init__()
        self.add_module("down", down)
        for name, module in zip(("norm", "act"), between, strict=False):
            self.add_module(name, module)
        self.add_module("up", up)


class Doped(nn.Module):
    """``layer(x) + low_rank(x)``, a sparse layer and a dense path of low rank: Sparse Doped."""

    def __init__(self, layer: nn.Module, low_rank: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.low_rank = low_rank

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.low_rank(x)
        return out


def transform_layer(
    layer: nn.Conv2d | nn.Linear,
    kind: str,
    sparsity: float,
    tail: Callable[[], list[nn.Module]] = list,
    middle: Callable[[int], list[nn.Module]] | None = None,
) -> tuple[nn.Module, list[str]]:
    """Make the transformation of a layer, freshly initialised, and name the weights in it that become sparse.

    Args:
        layer: a ``Conv2d`` or ``Linear``, which is left as it is.
        kind: one of :data:`KINDS`.
        sparsity: above 0.
        tail: makes what follows the layer in each parallel branch, such as its norm and activation.
        middle: makes norm and activation between the factors for their width; by default ``BatchNorm2d`` and ``ReLU`` of a
            convolution, as the published configurations have it, and ``ReLU`` of a linear layer, as the formula has it.

    Raises:
        ValueError: for a grouped convolution that is to be factorized or doped.
    """
    if kind == "wide":
        return _wide(layer, width_factor(sparsity)), ["weight"]
    if kind == "parallel":
        count = num_branches(sparsity)
        branches: list[nn.Module] = []
        for _ in range(count):
            fresh, after = _fresh(layer), tail()
            branches.append(nn.Sequential(fresh, *after) if after else fresh)
        names = [
            f"branches.{i}.0.weight" if isinstance(b, nn.Sequential) else f"branches.{i}.weight"
            for i, b in enumerate(branches)
        ]
        return Parallel(branches), names
    columns, outputs = layer.weight[0].numel(), layer.weight.shape[0]
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise ValueError(f"a convolution in {layer.groups} groups cannot be {kind}: take 'parallel', or leave it as it is")
    if kind == "doped":
        low_rank = Factorized(*_factors(layer, doped_rank(columns, outputs, sparsity), bias=False))
        return Doped(_fresh(layer), low_rank), ["layer.weight"]
    rank = factorized_rank(columns, outputs, sparsity)
    between = _middle(layer, rank) if middle is None else middle(rank)
    return Factorized(*_factors(layer, rank, bias=layer.bias is not None), *between), ["down.weight", "up.weight"]


def solved_sparsity(layer: nn.Conv2d | nn.Linear, kind: str, sparsity: float) -> float:
    """The fraction of zeros with which the transformed layer has the operations of the dense one."""
    columns, outputs = layer.weight[0].numel(), layer.weight.shape[0]
    dense = columns * outputs
    if kind == "wide":
        wide = _wide(layer, width_factor(sparsity)).weight
        return 1 - dense / wide.numel()
    if kind == "parallel":
        return 1 - 1 / num_branches(sparsity)
    if kind == "factorized":
        return max(0.0, 1 - dense / (factorized_rank(columns, outputs, sparsity) * (columns + outputs)))
    return doped_rank(columns, outputs, sparsity) * (columns + outputs) / dense


def init_layer(layer: nn.Module) -> None:
    """Initialise a layer anew: Kaiming normal by fan-out for a convolution's weight, as Sparse-IFT has it, else torch's way.

    The fan is that of the dense weight: masks come later and weights are not scaled up for them.
    """
    if isinstance(layer, nn.Conv2d):
        layer.reset_parameters()
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.Linear | nn.modules.batchnorm._BatchNorm):
        layer.reset_parameters()


def _fresh(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    fresh = deepcopy(layer)
    init_layer(fresh)
    return fresh


def _wide(layer: nn.Conv2d | nn.Linear, factor: float) -> nn.Conv2d | nn.Linear:
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        wide: nn.Conv2d | nn.Linear = nn.Linear(
            int(layer.in_features * factor),
            int(layer.out_features * factor),
            has_bias,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
    else:
        sides = int(layer.in_channels // layer.groups * factor) * layer.groups
        outputs = int(layer.out_channels // layer.groups * factor) * layer.groups
        wide = _conv_like(layer, sides, outputs, layer.groups, has_bias)
    init_layer(wide)
    return wide


def _conv_like(layer: nn.Conv2d, inputs: int, outputs: int, groups: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        bias,
        layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )


def _factors(layer: nn.Conv2d | nn.Linear, rank: int, bias: bool) -> tuple[nn.Module, nn.Module]:
    if rank < 1:
        raise ValueError(f"a {type(layer).__name__} of {tuple(layer.weight.shape)} is too small for a path of rank 1")
    device, dtype = layer.weight.device, layer.weight.dtype
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(layer.in_features, rank, False, device=device, dtype=dtype)
        up: nn.Module = nn.Linear(rank, layer.out_features, bias, device=device, dtype=dtype)
    else:
        down = _conv_like(layer, layer.in_channels, rank, 1, False)
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=bias, device=device, dtype=dtype)
    init_layer(down)
    init_layer(up)
    return down, up


def _middle(layer: nn.Conv2d | nn.Linear, rank: int) -> list[nn.Module]:
    if isinstance(layer, nn.Linear):
        return [nn.Identity(), nn.ReLU()]
    return [nn.BatchNorm2d(rank, device=layer.weight.device, dtype=layer.weight.dtype), nn.ReLU()]
