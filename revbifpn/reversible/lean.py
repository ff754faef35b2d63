r"""The lean form: chains of convolution, batch norm and activation whose backward pass is written out.

With ``x`` the input of unit ``i`` and ``w, gamma, beta`` its parameters, a unit computes

.. code-block:: text

    z = conv(x, w)      xhat = (z - mean) * rstd      u = gamma * xhat + beta      a = act(u)      y = a * gate(a)

What a recorded chain leaves behind is each norm's mean and reciprocal standard deviation, two vectors, and the mask of
stochastic depth, one number a sample; a stored chain keeps ``z`` too. :mod:`.lean_replay` is the second run.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.reversible import kernels
from revbifpn.reversible.forms import EdgeCost, Form, Replay, Run, Setting
from revbifpn.reversible.kernels import cast
from revbifpn.reversible.lean_parts import Affine, ConvNorm, Gate, SqueezeExcite, Stats, Unit, draw_mask

#: A convolution of fewer multiply-accumulates for each byte that it reads or writes waits for memory: processors and graphics
#: cards alike do some ten to forty in the time of a byte.
MACS_PER_BYTE = 20


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


class Chain(Form):
    """See :func:`lean_chain`."""

    def __init__(self, edge: nn.Module, units: list[Unit], drop_path: nn.Module | None, upsample: nn.Upsample | None) -> None:
        super().__init__(edge)
        self.units = units
        self.drop_path = drop_path
        self.scale = 0.0 if upsample is None else float(upsample.scale_factor)  # type: ignore[arg-type]
        self.spans: list[slice] = []  # of each unit's parameters
        self._chunks: dict[Hashable, list[slice]] = {}
        for unit in units:
            slots = unit.slots()
            self.spans.append(slice(len(self.slots), len(self.slots) + len(slots)))
            self.slots += slots

    def begin(self, setting: Setting, store: bool) -> Run:
        return ChainRun(self, setting, store)

    def chunks(self, source: Tensor, setting: Setting) -> list[slice]:
        """Slices of the batch, so large that the widest tensor of a chunk is worth a call of its own."""
        nbytes = kernels.chunk_bytes(source, setting.frugal, setting.room)
        key = (source.shape, source.element_size(), nbytes, setting.room)
        if key not in self._chunks:
            room = 0.0 if setting.frugal else setting.room - self.cost(source.shape, source.element_size()).kept
            # A chunk has some four tensors of its size beside what is kept of the whole batch.
            self._chunks[key] = self._slices(source, nbytes + max(0.0, room) / 4)
        return self._chunks[key]

    def _slices(self, source: Tensor, nbytes: float) -> list[slice]:
        batch, _, height, width = source.shape
        widest = max(unit.conv.in_channels for unit in self.units)
        if self.scale:
            widest = max(widest, int(self.units[-1].conv.out_channels * self.scale**2))
        widest *= height * width * source.element_size()
        count = min(batch, max(1, int(batch * widest // nbytes)))
        rows = -(-batch // count)
        return [slice(begin, begin + rows) for begin in range(0, batch, rows)]

    def cost(self, shape: Sequence[int], itemsize: int) -> EdgeCost:
        batch, _, height, width = shape
        kept, saved = 0, 0.0
        for unit in self.units:
            conv = unit.conv
            read = batch * conv.in_channels * height * width * itemsize
            height, width = _out_size(conv, height, 0), _out_size(conv, width, 1)
            written = batch * conv.out_channels * height * width
            macs = written * (conv.weight.numel() // conv.out_channels)
            kept += written * itemsize
            saved += max(macs / MACS_PER_BYTE, read + written * itemsize)
        return EdgeCost(kept, saved)


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
        chunks = form.chunks(source, self.setting) if self.setting.exact else [slice(None)]
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
                u = affine.value(affine.normalise(z, overwrite=not self.store), dtype, overwrite=True)
            del z
            x = unit.act.apply_(u)
            del u
            if unit.se is not None:
                gates = [Gate(unit, se_params).of(x[rows]) for rows in chunks]
                x = x.mul_(torch.cat(gates) if len(gates) > 1 else gates[0])
        self.mask = draw_mask(form.drop_path, x)
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

        chunks = self.form.chunks(source, self.setting)
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
