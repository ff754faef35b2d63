"""The yardstick: RevBiFPN's layers as an ordinary eager network, without the reversible engine.

Every figure of the engine is a ratio to this network's. It is written with modules of torch and timm alone, so that nothing
that makes the engine faster changes the yardstick; its parameters have the names of :class:`revbifpn.RevBiFPN`'s, so one state
dict fits both. Its memory format is that of its weights and images: nothing is converted.

>>> from revbifpn import RevBiFPN
>>> model = RevBiFPN("s0")
>>> plain = PlainRevBiFPN("s0")
>>> plain.load_state_dict(model.state_dict())
<All keys matched successfully>
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revbifpn.models.variants import STREAMS, STRIDES, StreamSpec, Variant, get_variant

NUM_BLOCKS = 2  # on each stream of a stage
COLOURS = 3  # R, G, B

Streams = tuple[Tensor, ...]


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, Hardswish; (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, source: int, target: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(source, target, kernel, stride, kernel // 2, groups=groups, bias=False),
            norm=nn.BatchNorm2d(target, eps=1e-3, momentum=0.1),
        )
        if act:
            layers["act"] = nn.Hardswish()
        super().__init__(layers)


class MBConv(nn.Sequential):
    """Expand, depthwise, squeeze-excite, project; (N, source, H, W) -> (N, target, H / stride, W / stride)."""

    def __init__(
        self, source: int, target: int, kernel: int, stride: int, expand: int, se_ratio: float, drop_path: float = 0.0
    ) -> None:
        hidden = source * expand
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expand != 1:
            layers["expand"] = ConvNormAct(source, hidden)
        layers["depthwise"] = ConvNormAct(hidden, hidden, kernel, stride, groups=hidden)
        if se_ratio:
            layers["se"] = SqueezeExcite(
                hidden, rd_channels=max(1, int(source * se_ratio)), act_layer=nn.Hardswish, gate_layer=nn.Hardsigmoid
            )
        layers["project"] = ConvNormAct(hidden, target, act=False)
        if drop_path:
            layers["drop_path"] = DropPath(drop_path)
        super().__init__(layers)


class UpEdge(nn.Sequential):
    """An MBConv and bilinear upsampling by ``scale``."""

    def __init__(self, mbconv: MBConv, scale: int) -> None:
        super().__init__(
            OrderedDict(mbconv=mbconv, upsample=nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False))
        )


class Block(nn.Module):
    """``y1 = x1 + f(x0); y0 = x0 + g(y1)`` for the halves of a stream."""

    def __init__(self, spec: StreamSpec, channels: int, drop_path: float) -> None:
        super().__init__()
        half = channels // 2
        self.f = MBConv(half, half, spec.kernel, 1, spec.expand, spec.se_ratio, drop_path)
        self.g = MBConv(half, half, spec.kernel, 1, spec.expand, spec.se_ratio, drop_path)

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x1 + self.f(x0)
        return x0 + self.g(x1), x1


class Blocks(nn.Module):
    """The blocks of every stream, one chain for each; the streams keep their shapes."""

    def __init__(self, variant: Variant, num_streams: int, drop_path: float) -> None:
        super().__init__()
        self.chains = nn.ModuleList(
            nn.ModuleList(Block(spec, channels, drop_path) for _ in range(NUM_BLOCKS))
            for spec, channels in list(zip(STREAMS, variant.channels, strict=True))[:num_streams]
        )

    def forward(self, *streams: Tensor) -> Streams:
        return tuple(self._chain(chain, x) for chain, x in zip(self.chains, streams, strict=True))

    def _chain(self, chain: nn.Module, x: Tensor) -> Tensor:
        x0, x1 = x.chunk(2, dim=1)
        for block in chain.children():
            x0, x1 = block(x0, x1)
        return torch.cat([x0, x1], dim=1)


class Silo(nn.Module):
    """Every stream gets the sum of all finer ones, then that of all coarser ones; streams beyond the inputs are made."""

    def __init__(self, variant: Variant, num_inputs: int, num_outputs: int, drop_path: float) -> None:
        super().__init__()
        channels, outputs = variant.channels, range(num_outputs)

        def down(i: int, j: int) -> nn.Module:
            stride, spec = STRIDES[j] // STRIDES[i], STREAMS[i]
            rate = drop_path if j < num_inputs else 0.0
            return MBConv(channels[i], channels[j], 2 * stride - 1, stride, spec.expand, spec.se_ratio, rate)

        def up(i: int, j: int) -> nn.Module:
            spec = STREAMS[j]
            mbconv = MBConv(channels[i], channels[j], STREAMS[i].up_kernel, 1, spec.expand, spec.se_ratio, drop_path)
            return UpEdge(mbconv, STRIDES[i] // STRIDES[j])

        self.down = _nest({(i, j): down(i, j) for i in range(num_inputs) for j in outputs if i < j})
        self.up = _nest({(i, j): up(i, j) for i in outputs for j in outputs if i > j})
        self.num_outputs = num_outputs

    def forward(self, *x: Tensor) -> Streams:
        y = _add_edges(self.down, x, self.num_outputs)
        return _add_edges(self.up, y, self.num_outputs)


def _nest(edges: Mapping[tuple[int, int], nn.Module]) -> nn.ModuleDict:
    nested = nn.ModuleDict()
    for (i, j), edge in edges.items():
        if str(i) not in nested:
            nested[str(i)] = nn.ModuleDict()
        cast(nn.ModuleDict, nested[str(i)])[str(j)] = edge
    return nested


def _add_edges(edges: nn.ModuleDict, inputs: Streams, num_outputs: int) -> Streams:
    """``output_j = input_j + sum_i edge_ij(input_i)``; no ``input_j`` for a stream that is made."""
    outputs: list[Tensor | None] = [*inputs, *([None] * (num_outputs - len(inputs)))]
    for i, targets in edges.items():
        for j, edge in cast(nn.ModuleDict, targets).items():
            value, target = edge(inputs[int(i)]), outputs[int(j)]
            outputs[int(j)] = value if target is None else target + value
    return tuple(cast(list[Tensor], outputs))


class Head(nn.Module):
    """Folds the pyramid from its finest level into its coarsest, then classifies."""

    def __init__(self, variant: Variant, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        channels = variant.neck_channels
        self.steps = nn.ModuleList(
            MBConv(fine, coarse, 5, 2, spec.neck_expand, spec.neck_se_ratio)
            for fine, coarse, spec in zip(channels, channels[1:], STREAMS, strict=False)
        )
        self.final = ConvNormAct(channels[-1], variant.fc_features)
        self.fc = nn.Linear(variant.fc_features, num_classes)
        self.drop_rate = drop_rate

    def forward(self, levels: Streams) -> Tensor:
        x = levels[0]
        for step, level in zip(self.steps, levels[1:], strict=True):
            x = level + step(x)
        x = self.final(x).mean((2, 3))
        logits: Tensor = self.fc(F.dropout(x, self.drop_rate, self.training))
        return logits


class PlainRevBiFPN(nn.Module):
    """RevBiFPN's classifier as an ordinary network: (N, 3, H, W) -> (N, num_classes).

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        num_classes: of the linear layer.
        drop_rate, drop_path_rate: dropout, and stochastic depth of the last stage; None for the variant's.
        checkpointing: keep a stage's inputs and run it again in backward (``torch.utils.checkpoint``). Neck and head take
            less than a stage and keep what they make: running them again would save nothing.
    """

    def __init__(
        self,
        variant: str | Variant,
        num_classes: int = 1000,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.variant = variant = get_variant(variant)
        rate = variant.drop_path_rate if drop_path_rate is None else drop_path_rate
        layers: list[nn.Module] = [nn.Identity()]  # space-to-depth's place: it has no weights
        for stage in range(variant.num_stages):
            num_inputs, num_outputs = min(stage + 1, len(STRIDES)), min(stage + 2, len(STRIDES))
            drop_path = rate * (stage + 1) / variant.num_stages
            layers += [Blocks(variant, num_inputs, drop_path), Silo(variant, num_inputs, num_outputs, drop_path)]
        self.body = nn.ModuleList(layers)
        self.neck = nn.ModuleList(
            MBConv(channels, out, 5, 1, spec.neck_expand, spec.neck_se_ratio)
            for channels, out, spec in zip(variant.channels, variant.neck_channels, STREAMS, strict=True)
        )
        self.head = Head(variant, num_classes, variant.drop_rate if drop_rate is None else drop_rate)
        self.checkpointing = checkpointing

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for the switch."""
        self.checkpointing = enable

    def forward(self, image: Tensor) -> Tensor:
        slots = self.variant.stem_channels
        repeated = image if slots == COLOURS else image[:, [slot % COLOURS for slot in range(slots)]]
        channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
        stem = _space_to_depth(repeated, STRIDES[0])
        streams: Streams = (stem.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format),)
        layers = list(self.body)[1:]
        for blocks, silo in zip(layers[::2], layers[1::2], strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                streams = checkpoint(_stage, blocks, silo, *streams, use_reentrant=False)
            else:
                streams = _stage(blocks, silo, *streams)
        return self.head(tuple(neck(stream) for neck, stream in zip(self.neck, streams, strict=True)))


def _stage(blocks: nn.Module, silo: nn.Module, *streams: Tensor) -> Streams:
    outputs: Streams = silo(*blocks(*streams))
    return outputs


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    """(N, C, H, W) -> (N, block * block * C, H / block, W / block); a new channel is (row, column, old channel)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, block * block * c, h // block, w // block)
