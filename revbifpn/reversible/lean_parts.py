"""What units of lean chains are made of: their description, affine norms, gates, masks. Notation as in :mod:`.lean`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.reversible import kernels
from revbifpn.reversible.forms import Slot
from revbifpn.reversible.kernels import Activation, cast


class SqueezeExcite(NamedTuple):
    """``a * gate(expand(act(reduce(mean(a)))))`` with the mean over positions; both convolutions are 1x1 with bias."""

    reduce: nn.Conv2d
    act: nn.Module
    expand: nn.Conv2d
    gate: nn.Module


@dataclass(frozen=True)
class ConvNorm:
    """One unit of a chain: a convolution without bias, its batch norm, an activation (None for none), squeeze-excite."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    act: nn.Module | None = None
    se: SqueezeExcite | None = None


class Unit(NamedTuple):
    """A :class:`ConvNorm` with its activations looked up."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    act: Activation
    se: SqueezeExcite | None
    se_act: Activation
    se_gate: Activation

    @classmethod
    def of(cls, unit: ConvNorm) -> Unit:
        acts = [unit.act, unit.se.act if unit.se else None, unit.se.gate if unit.se else None]
        act, se_act, se_gate = (kernels.activation(module) or kernels.IDENTITY for module in acts)
        return cls(unit.conv, unit.norm, act, unit.se, se_act, se_gate)

    def slots(self) -> list[Slot]:
        """Weight, gamma, beta, and squeeze-excite's weight and bias twice."""
        modules = [(self.conv, "weight"), (self.norm, "weight"), (self.norm, "bias")]
        if self.se is not None:
            modules += [(conv, name) for conv in (self.se.reduce, self.se.expand) for name in ("weight", "bias")]  # type: ignore[misc]
        return [(module._parameters, name) for module, name in modules]


class Stats(NamedTuple):
    """What a norm normalised by; ``of_batch`` if its statistics depend on its input."""

    mean: Tensor
    rstd: Tensor
    of_batch: bool


def draw_mask(drop_path: nn.Module | None, like: Tensor) -> Tensor | None:
    """Stochastic depth's factor of each sample, (N, 1, 1, 1), drawn as timm's ``DropPath`` draws it."""
    if drop_path is None or not drop_path.training or not drop_path.drop_prob:
        return None
    keep = 1 - float(drop_path.drop_prob)  # type: ignore[arg-type]
    mask = like.new_empty((like.shape[0], 1, 1, 1)).bernoulli_(keep)
    return mask.div_(keep) if keep > 0 and drop_path.scale_by_keep else mask


class Affine:
    """A norm with known statistics, chunk by chunk; vectors have the shape (C, 1, 1)."""

    __slots__ = ("beta", "gamma", "offset", "rstd")

    def __init__(self, stats: Stats, gamma: Tensor, beta: Tensor) -> None:
        dtype = stats.rstd.dtype
        self.rstd = stats.rstd.view(-1, 1, 1)
        self.offset = (stats.mean * stats.rstd).neg_().view(-1, 1, 1)
        self.gamma = cast(gamma, dtype).view(-1, 1, 1)
        self.beta = cast(beta, dtype).view(-1, 1, 1)

    def normalise(self, z: Tensor, overwrite: bool = False) -> Tensor:
        """``xhat`` of a convolution's output, in the statistics' dtype; in its memory if that may be overwritten."""
        out = z if overwrite and z.dtype == self.rstd.dtype else None
        return torch.addcmul(self.offset, z, self.rstd, out=out)

    def value(self, xhat: Tensor, dtype: torch.dtype, overwrite: bool = False) -> Tensor:
        """``u`` of ``xhat``, in its memory if that may be overwritten."""
        return cast(torch.addcmul(self.beta, xhat, self.gamma, out=xhat if overwrite else None), dtype)


class Gate:
    """Squeeze-excite's gate and its backward. Matrices: 1x1 convolutions of one pixel cost far more time to call."""

    __slots__ = ("gate", "hidden", "params", "pooled", "pre_act", "pre_gate", "unit")

    def __init__(self, unit: Unit, params: Sequence[Tensor]) -> None:
        self.unit = unit
        self.params = params

    def of(self, a: Tensor) -> Tensor:
        """The gate of ``a``, (N, C, 1, 1)."""
        w1, b1, w2, b2 = (cast(p, a.dtype) for p in self.params)
        self.pooled = a.mean((2, 3))
        self.pre_act = F.linear(self.pooled, w1.flatten(1), b1)
        self.hidden = self.unit.se_act.apply(self.pre_act)
        self.pre_gate = F.linear(self.hidden, w2.flatten(1), b2)
        self.gate = self.unit.se_gate.apply(self.pre_gate)[:, :, None, None]
        return self.gate

    def backward(self, dy: Tensor, a: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gradient of ``a * gate(a)`` towards ``a``, in the memory of ``dy``, and what :func:`gate_grads` needs of it."""
        w1, _, w2, _ = (cast(p, a.dtype) for p in self.params)
        dpre_gate = self.unit.se_gate.backward((dy * a).sum((2, 3)), self.pre_gate)
        dpre_act = self.unit.se_act.backward(dpre_gate @ w2.flatten(1), self.pre_act)
        dpooled = (dpre_act @ w1.flatten(1)).div_(a.shape[2] * a.shape[3])
        da = torch.addcmul(dpooled[:, :, None, None], dy, self.gate, out=dy)
        return da, (dpre_act, self.pooled, dpre_gate, self.hidden)


def gate_grads(chunks: Sequence[tuple[Tensor, ...]], params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of squeeze-excite's four parameters, from what :meth:`Gate.backward` left of each chunk."""
    whole = chunks[0] if len(chunks) == 1 else [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    dpre_act, pooled, dpre_gate, hidden = whole
    return [
        (dpre_act.t() @ pooled).view_as(params[0]),
        dpre_act.sum(0),
        (dpre_gate.t() @ hidden).view_as(params[2]),
        dpre_gate.sum(0),
    ]
