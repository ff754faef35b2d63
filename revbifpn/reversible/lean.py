r"""The lean form: chains of convolution, batch norm and activation whose backward pass is written out.

With ``x`` the input of unit ``i`` and ``w, gamma, beta`` its parameters, a unit computes

.. code-block:: text

    z = conv(x, w)      xhat = (z - mean) * rstd      u = gamma * xhat + beta      a = act(u)      y = a * gate(a)

What a recorded chain leaves behind is each norm's mean and reciprocal standard deviation, two vectors, and the mask of
stochastic depth, one number a sample; a stored chain keeps ``z`` too. :mod:`.lean_replay` is the second run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.reversible import kernels
from revbifpn.reversible.forms import Form, Replay, Run, Setting, Slot
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


def lean_chain(
    edge: nn.Module,
    units: Sequence[ConvNorm],
    drop_path: nn.Module | None = None,
    upsample: nn.Upsample | None = None,
) -> Form | None:
    """The lean form of a module that applies ``units`` one after the other.

    Args:
        edge: the module whose form it is.
        units: at least one.
        drop_path: timm's ``DropPath`` behind the last unit.
        upsample: bilinear upsampling behind everything.

    Returns:
        None if a part is set up in a way that is not written out here; the plain form then serves.
    """
    if not units or not all(map(_is_known, units)) or not (upsample is None or _is_bilinear(upsample)):
        return None
    form = Chain(edge, [Unit.of(unit) for unit in units], drop_path, upsample)
    tied = len({id(parameter) for parameter in form.parameters()}) < len(form.slots)
    return None if tied else form


def _is_known(unit: ConvNorm) -> bool:
    conv, norm, se = unit.conv, unit.norm, unit.se
    return (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.momentum is not None
        and kernels.activation(unit.act) is not None
        and (se is None or _is_known_gate(se))
    )


def _is_known_gate(se: SqueezeExcite) -> bool:
    convs = (se.reduce, se.expand)
    return all(
        type(c) is nn.Conv2d and c.kernel_size == (1, 1) and c.bias is not None and c.groups == 1 for c in convs
    ) and all(kernels.activation(act) is not None for act in (se.act, se.gate))


def _is_bilinear(upsample: nn.Upsample) -> bool:
    return (
        type(upsample) is nn.Upsample
        and upsample.mode == "bilinear"
        and not upsample.align_corners
        and upsample.size is None
        and isinstance(upsample.scale_factor, float)
        and not upsample.recompute_scale_factor
    )


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


class Chain(Form):
    """See :func:`lean_chain`."""

    def __init__(self, edge: nn.Module, units: list[Unit], drop_path: nn.Module | None, upsample: nn.Upsample | None) -> None:
        super().__init__(edge)
        self.units = units
        self.drop_path = drop_path
        self.scale = 0.0 if upsample is None else float(upsample.scale_factor)  # type: ignore[arg-type]
        self.spans: list[slice] = []  # of each unit's parameters
        for unit in units:
            slots = unit.slots()
            self.spans.append(slice(len(self.slots), len(self.slots) + len(slots)))
            self.slots += slots

    def begin(self, setting: Setting, store: bool) -> Run:
        return ChainRun(self, setting, store)

    def chunks(self, source: Tensor, frugal: bool) -> list[slice]:
        """Slices of the batch, so large that the widest tensor of a chunk is worth a call of its own."""
        batch, _, height, width = source.shape
        widest = max(unit.conv.in_channels for unit in self.units)
        if self.scale:
            widest = max(widest, int(self.units[-1].conv.out_channels * self.scale**2))
        widest *= height * width * source.element_size()
        count = min(batch, max(1, batch * widest // kernels.chunk_bytes(source.device, frugal)))
        rows = -(-batch // count)
        return [slice(begin, begin + rows) for begin in range(0, batch, rows)]

    def kept_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes that a stored run keeps for a source of (N, C, H, W)."""
        batch, _, height, width = shape
        total = 0
        for unit in self.units:
            height, width = _out_size(unit.conv, height, 0), _out_size(unit.conv, width, 1)
            total += batch * unit.conv.out_channels * height * width * itemsize
        return total


def _out_size(conv: nn.Conv2d, size: int, axis: int) -> int:
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    return (size + 2 * int(conv.padding[axis]) - reach) // conv.stride[axis] + 1


class ChainRun(Run):
    """What a pass keeps of a chain."""

    __slots__ = ("form", "mask", "setting", "stats", "store", "zs")

    def __init__(self, form: Chain, setting: Setting, store: bool) -> None:
        self.form = form
        self.setting = setting
        self.store = store
        self.stats: list[Stats] = []
        self.mask: Tensor | None = None
        self.zs: list[Tensor] = []

    def record(self, source: Tensor) -> Tensor:
        form = self.form
        params = form.parameters()
        dtype = self.compute_dtype(source, params)
        # In exact mode the replay's operators run on the replay's shapes: kernels differ in the last bits between shapes.
        chunks = form.chunks(source, self.setting.frugal) if self.setting.exact else [slice(None)]
        x = cast(source, dtype)
        for unit, span in zip(form.units, form.spans, strict=True):
            weight, gamma, beta, *se_params = params[span]
            weight = cast(weight, dtype)
            if len(chunks) == 1:
                z = kernels.conv(unit.conv, x, weight)
            else:
                z = torch.cat([kernels.conv(unit.conv, x[rows], weight) for rows in chunks])
            u, stats = self._normalise(unit.norm, z, gamma, beta)
            self.stats.append(stats)
            if self.store:
                self.zs.append(z)
            if len(chunks) > 1 or not stats.of_batch:
                affine = Affine(stats, gamma, beta)
                u = torch.cat([affine.value(affine.normalise(z[rows]), dtype) for rows in chunks])
            del z
            x = unit.act.apply_(u)
            del u
            if unit.se is not None:
                gates = [Gate(unit, se_params).of(x[rows]) for rows in chunks]
                x = x.mul_(torch.cat(gates) if len(gates) > 1 else gates[0])
        self.mask = _draw_mask(form.drop_path, x)
        if self.mask is not None:
            x = x.mul_(self.mask)
        if not form.scale:
            return x
        return (
            torch.cat([kernels.upsample(x[rows], form.scale) for rows in chunks])
            if len(chunks) > 1
            else kernels.upsample(x, form.scale)
        )

    def _normalise(self, norm: nn.BatchNorm2d, z: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Stats]:
        mean, var = norm.running_mean, norm.running_var
        if not norm.training and mean is not None and var is not None:
            # Copies: a later pass may move the running ones before this one's backward.
            return z, Stats(mean.clone(), (var + norm.eps).rsqrt(), False)
        if norm.training and norm.num_batches_tracked is not None:
            self.setting.counters.append(norm.num_batches_tracked)
        momentum = norm.momentum if norm.training else 0.0
        u, batch_mean, rstd = torch.native_batch_norm(z, gamma, beta, mean, var, True, momentum, norm.eps)  # type: ignore[arg-type]
        return u, Stats(batch_mean, rstd, True)

    def compute_dtype(self, source: Tensor, params: Sequence[Tensor]) -> torch.dtype:
        """What the chain's convolutions compute in."""
        return self.setting.autocast or (params[0].dtype if self.setting.raised else source.dtype)

    def kept(self) -> list[Tensor]:
        zs, self.zs = self.zs, []
        return zs

    def replay(
        self, source: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor | None, wants_source: bool
    ) -> Replay:
        from revbifpn.reversible.lean_replay import ChunkedReplay, WholeReplay

        chunks = self.form.chunks(source, self.setting.frugal)
        if len(chunks) == 1:
            return WholeReplay(self, source, params, kept, grad, wants_source)
        return ChunkedReplay(self, chunks, source, params, kept, grad, wants_source)

    def differentiable(self, source: Tensor, params: Sequence[Tensor]) -> Tensor:
        x = source
        for unit, span, stats in zip(self.form.units, self.form.spans, self.stats, strict=True):
            weight, gamma, beta, *se_params = params[span]
            z = kernels.conv(unit.conv, x, weight)
            if stats.of_batch:
                u = F.batch_norm(z, None, None, gamma, beta, True, 0.0, unit.norm.eps)
            else:
                affine = Affine(stats, gamma, beta)
                u = affine.value(affine.normalise(z), z.dtype)
            x = unit.act.apply(u)
            if unit.se is not None:
                x = x * Gate(unit, se_params).of(x)
        if self.mask is not None:
            x = x * self.mask
        return kernels.upsample(x, self.form.scale) if self.form.scale else x


def _draw_mask(drop_path: nn.Module | None, like: Tensor) -> Tensor | None:
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

    def value(self, xhat: Tensor, dtype: torch.dtype) -> Tensor:
        """``u`` of ``xhat``."""
        return cast(torch.addcmul(self.beta, xhat, self.gamma), dtype)


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
