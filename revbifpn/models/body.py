"""RevBiFPN's body: an image in, four streams out, reversible from end to end (RevBiFPN, section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from revbifpn.models.blocks import MBConv, UpEdge, repeat_channels
from revbifpn.models.variants import SIZE_DIVISOR, STREAMS, STRIDES, Variant
from revbifpn.reversible import ReadOut, RevBlock, ReversibleSequential, RevSilo, SpaceToDepth, StreamWise
from revbifpn.reversible.memory_format import MemoryFormat, format_to_compute_in, in_format
from revbifpn.reversible.sequential import Exact
from revbifpn.reversible.streams import Streams, memory_format_of

NUM_BLOCKS = 2  # RevBlocks on each stream of a stage


class Body(ReversibleSequential):
    """Space-to-depth by 4, then for each stage the streams' RevBlocks and a RevSilo; the first three silos add a stream each.

    (N, in_chans, H, W), repeated up to ``variant.stem_channels`` -> the four streams, stream i of shape
    (N, variant.channels[i], H / stride, W / stride), in the image's memory format. With a ``readout`` it returns what that
    reads, in the memory format that it was computed in. Its inverse returns the repeated channels.

    ``torch.fx`` takes it as one node that trains reversibly, where it is named as a leaf (timm's tracers know it);
    ``torch.jit.script`` takes its trace.
    """

    def __init__(
        self,
        variant: Variant,
        in_chans: int,
        drop_path_rate: float,
        reversible: bool,
        exact: Exact,
        exact_bits: int,
        memory_format: MemoryFormat,
    ) -> None:
        layers = _body_layers(variant, drop_path_rate, memory_format)
        super().__init__(*layers, reversible=reversible, exact=exact, exact_bits=exact_bits)
        self.in_chans = in_chans
        self.slots = variant.stem_channels

    def forward(self, *streams: Tensor, readout: ReadOut | None = None) -> Streams:  # type: ignore[override]
        (image,) = streams
        if isinstance(image, Proxy):
            raise TypeError(
                "torch.fx cannot look inside RevBiFPN's reversible body: trace with timm.models.create_feature_extractor, or "
                "with a tracer that has revbifpn.models.body.Body among its leaf modules"
            )
        outputs = super().forward(repeat_channels(image, self.slots), readout=readout)
        return outputs if readout is not None else tuple(in_format(stream, memory_format_of(image)) for stream in outputs)

    def inverse(self, *streams: Tensor) -> Streams:
        came_in = memory_format_of(streams[0])
        # In exact mode edges return the same bits only in the format that they ran in.
        memory_format = format_to_compute_in(cast(SpaceToDepth, self[0]).memory_format, streams[0])
        images = super().inverse(*(in_format(stream, memory_format) for stream in streams))
        return tuple(in_format(image, came_in) for image in images)

    def __prepare_scriptable__(self) -> nn.Module:
        return trace_for_script(self, self.in_chans)


def trace_for_script(module: nn.Module, in_chans: int) -> nn.Module:
    """What ``torch.jit.script`` compiles in place of ``module``: its trace on one small image, for any batch and size.

    Nothing in these models depends on the image's values, so the trace is the whole computation, in eval mode.

    Raises:
        RuntimeError: in training mode, whose running statistics and random numbers a trace would freeze.
    """
    if module.training:
        raise RuntimeError(f"torch.jit.script({type(module).__name__}) is for inference: call eval() on the model first")
    like = next(module.parameters())
    image = torch.zeros(1, in_chans, SIZE_DIVISOR, SIZE_DIVISOR, device=like.device, dtype=like.dtype)
    with warnings.catch_warnings():
        # The checks of shapes become part of no trace, which is what the warnings say.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, image, check_trace=False)
    return nn.Sequential(traced)  # torch.jit.script refuses what is compiled already, but not around it


def _body_layers(
    variant: Variant, drop_path_rate: float, memory_format: MemoryFormat
) -> list[SpaceToDepth | StreamWise | RevSilo]:
    """Stem, then for each stage the RevBlocks of its streams and its silo."""
    layers: list[SpaceToDepth | StreamWise | RevSilo] = [SpaceToDepth(STRIDES[0], memory_format)]
    for stage in range(variant.num_stages):
        num_inputs = min(stage + 1, len(STRIDES))
        num_outputs = min(stage + 2, len(STRIDES))
        drop_path = drop_path_rate * (stage + 1) / variant.num_stages
        layers.append(StreamWise([_rev_block(variant, s, drop_path) for _ in range(NUM_BLOCKS)] for s in range(num_inputs)))
        layers.append(_rev_silo(variant, num_inputs, num_outputs, drop_path))
    return layers


def _rev_block(variant: Variant, stream: int, drop_path: float) -> RevBlock:
    spec, channels = STREAMS[stream], variant.channels[stream]
    first = channels // 2
    second = channels - first

    def half(source: int, target: int) -> MBConv:
        return MBConv(source, target, spec.kernel, expand=spec.expand, se_ratio=spec.se_ratio, drop_path=drop_path)

    return RevBlock(half(first, second), half(second, first))


def _rev_silo(variant: Variant, num_inputs: int, num_outputs: int, drop_path: float) -> RevSilo:
    channels = variant.channels

    def down(i: int, j: int) -> nn.Module:
        stride = STRIDES[j] // STRIDES[i]
        # An edge that creates a stream has nothing beside it to keep a dropped sample alive.
        rate = drop_path if j < num_inputs else 0.0
        spec = STREAMS[i]
        return MBConv(channels[i], channels[j], 2 * stride - 1, stride, spec.expand, spec.se_ratio, rate)

    def up(i: int, j: int) -> nn.Module:
        spec = STREAMS[j]
        mbconv = MBConv(channels[i], channels[j], STREAMS[i].up_kernel, 1, spec.expand, spec.se_ratio, drop_path)
        return UpEdge(mbconv, STRIDES[i] // STRIDES[j])

    def edges(make: Callable[[int, int], nn.Module], pairs: list[tuple[int, int]]) -> dict[tuple[int, int], nn.Module]:
        return {pair: make(*pair) for pair in pairs}

    streams = range(num_outputs)
    return RevSilo(
        down=edges(down, [(i, j) for i in range(num_inputs) for j in streams if i < j]),
        up=edges(up, [(i, j) for i in streams for j in streams if i > j]),
        num_inputs=num_inputs,
    )
