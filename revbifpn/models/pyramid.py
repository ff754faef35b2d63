"""RevBiFPN's body and neck: an image in, a feature pyramid out (RevBiFPN, sections 3 and 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from revbifpn.models.arguments import check_count, check_rate
from revbifpn.models.blocks import MBConv, MixChannels, UpEdge, init_weights, repeat_channels
from revbifpn.models.checkpoints import Fitted, convert_checkpoint, fit, is_published_layout
from revbifpn.models.variants import SIZE_DIVISOR, STREAMS, STRIDES, Variant, get_variant
from revbifpn.reversible import ReadOut, RevBlock, ReversibleSequential, RevSilo, SpaceToDepth, StreamWise, recompute
from revbifpn.reversible.exact import DEFAULT_BITS
from revbifpn.reversible.memory_format import MemoryFormat, check_memory_format, format_to_compute_in, in_format
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
                "with a tracer that has revbifpn.models.pyramid.Body among its leaf modules"
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


class RevBiFPNPyramid(nn.Module):
    """The fully reversible body and the neck.

    ``stem`` brings an image with more channels than ``variant.stem_channels`` to those (:class:`.MixChannels`); with fewer,
    as in the published models, it does nothing and has no weights. ``body`` is reversible (:class:`.Body`). ``neck`` is one
    MBConv for each stream; it is not reversible and is recomputed in backward.

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        in_chans: image channels.
        drop_path_rate: stochastic depth rate of the last stage, rising linearly from the first; None for the variant's.
        reversible: False keeps all activations, as an ordinary network ("stored mode"); same weights, same gradients.
        exact: rebuild activations bit for bit (see :mod:`revbifpn.reversible.exact`); "auto" does in half precision.
        exact_bits: fractional bits of the exact mode's grid.
        memory_format: what it computes in: "channels_last", "contiguous", "keep" for that of the images, or "auto" for
            channels_last on a CPU, which is faster there, and for that of the images elsewhere. What is returned is laid out
            as the images are. Weights need not be converted.

    Attributes:
        kept_levels: the levels that it returns; all four, unless :meth:`keep_levels` dropped some.

    Raises:
        ValueError: for an unknown variant or memory format, no image channels, or a rate outside of 0 <= rate < 1.
    """

    def __init__(
        self,
        variant: str | Variant,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        reversible: bool = True,
        exact: Exact = "auto",
        exact_bits: int = DEFAULT_BITS,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        super().__init__()
        self.variant = get_variant(variant)
        self.in_chans = check_count("in_chans", in_chans, 1)
        self.reversible = reversible
        self.kept_levels = tuple(range(len(STRIDES)))
        rate = check_rate("drop_path_rate", self.variant.drop_path_rate if drop_path_rate is None else drop_path_rate)
        slots = self.variant.stem_channels
        self.stem = MixChannels(in_chans, slots) if in_chans > slots else nn.Identity()
        self.body = Body(self.variant, min(in_chans, slots), rate, reversible, exact, exact_bits, memory_format)
        self.neck = nn.ModuleList(
            MBConv(c, out, kernel=5, expand=spec.neck_expand, se_ratio=spec.neck_se_ratio)
            for c, out, spec in zip(self.variant.channels, self.variant.neck_channels, STREAMS, strict=True)
        )
        self._readouts: dict[tuple[int, ...], ReadOut] = {}
        self.apply(init_weights)

    @property
    def memory_format(self) -> MemoryFormat:
        """What it computes in; may be set at any time."""
        return cast(SpaceToDepth, self.body[0]).memory_format

    @memory_format.setter
    def memory_format(self, memory_format: MemoryFormat) -> None:
        cast(SpaceToDepth, self.body[0]).memory_format = check_memory_format(memory_format)

    def stage_layers(self, stage: int) -> list[nn.Module]:
        """The body's layers of one stage, ``0 <= stage < variant.num_stages``."""
        return [self.body[1 + 2 * stage], self.body[2 + 2 * stage]]

    def forward_body(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the four streams, stream i of shape (N, variant.channels[i], H / stride, W / stride).

        Raises:
            ValueError: if the image has another number of channels, sides that are no multiples of 32, or integers.
        """
        self._check_image(image)
        streams = self.body(self.stem(image))
        return tuple(streams[i] for i in range(len(STRIDES)))

    def forward_levels(self, image: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the chosen ``levels``, level i of (N, neck_channels[i], H / stride, W / stride)."""
        return self._handed_back(image, self._levels(image, levels))

    def _levels(self, image: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        """The chosen levels, in the memory format that they were computed in."""
        if isinstance(image, Proxy):
            streams = self.forward_body(image)
            return tuple(self.neck[level](streams[level]) for level in levels)
        self._check_image(image)
        outputs: tuple[Tensor, ...] = self.body(self.stem(image), readout=self._readout(tuple(levels)))
        return outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the kept levels, finest first, level i of (N, neck_channels[i], H / stride, W / stride)."""
        return self.forward_levels(image, self.kept_levels)

    def _handed_back(self, image: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The levels in the memory format of the image; in a torch.fx graph the body has seen to that."""
        if isinstance(image, Proxy):
            return tuple(levels)
        return tuple(in_format(level, memory_format_of(image)) for level in levels)

    def _readout(self, levels: tuple[int, ...]) -> ReadOut:
        """The neck of some levels, as the end of the body's pass."""
        if levels not in self._readouts:
            self._readouts[levels] = ReadOut([(level, self.neck[level]) for level in levels], len(STRIDES))
        return self._readouts[levels]

    def keep_levels(self, levels: Iterable[int]) -> None:
        """Drop what only serves other levels: their neck, and the edges of the last silo that lead to nothing kept.

        The kept levels' values stay the same, and no parameter is left without a gradient. There is no way back.

        Args:
            levels: indices of levels that are still kept, 0 for stride 4 to 3 for stride 32.

        Raises:
            ValueError: if there are none, or one is not kept.
        """
        kept = sorted(set(levels))
        if not kept or not set(kept) <= set(self.kept_levels):
            raise ValueError(f"cannot keep the levels {kept}: choose at least one of {self.kept_levels}")
        for level in set(self.kept_levels) - set(kept):
            self.neck[level] = nn.Identity()
        silo = cast(RevSilo, self.body[-1])
        # z_j = y_j + sum of up edges: y_j is read by z_j and, through its up edges, by all finer z_k.
        _drop_edges(silo.up, lambda target: target in kept)
        _drop_edges(silo.down, lambda target: target >= kept[0])
        self.kept_levels = tuple(kept)
        self.forget_edges()

    def forget_edges(self) -> None:
        """Look the neck's modules up anew; to be called where they were replaced."""
        self._readouts.clear()

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a module that is not reversible, keeping as little of it as the mode asks for."""
        if isinstance(inputs[0], Proxy):  # torch.fx has no values yet, so nothing to keep
            output: Tensor = module(*inputs)
            return output
        return recompute(module, *inputs, store=not self.reversible, exact=self.body.is_exact(inputs[0]))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, *, allow_non_finite: bool = False
    ) -> Any:
        """torch's, for other key layouts and stems too; if ``strict``, nothing is loaded unless everything fits.

        timm's ``checkpoint_path`` ends here, so this is a part of the path in :mod:`revbifpn.models.checkpoints`.

        Args:
            allow_non_finite: take weights that are NaN or infinite too, where ``strict`` would refuse them.

        Raises:
            CheckpointError: if ``strict``, see :func:`.fit`.
        """
        if strict and not isinstance(state_dict, Fitted):
            state_dict = fit(state_dict, self, "the state dict", allow_non_finite=allow_non_finite)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the published key layout too, wherever a state dict is loaded from."""
        own = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
        if is_published_layout(own):
            converted = convert_checkpoint({name: state_dict.pop(key) for name, key in own.items()})
            state_dict.update({prefix + name: tensor for name, tensor in converted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_image(self, image: Tensor) -> None:
        if isinstance(image, Proxy):
            return
        name = f"RevBiFPN-{self.variant.name}"
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(
                f"{name}: expected an image batch of shape (N, {self.in_chans}, H, W), got {tuple(image.shape)}; "
                "the number of channels is set by in_chans"
            )
        if not image.is_floating_point():
            raise ValueError(
                f"{name}: image must hold floating-point numbers, normalized as in training, got {image.dtype}: for pixels of "
                "0..255 that is (image / 255 - mean) / std"
            )
        # While exporting, sides may be symbols; the exporter then keeps the constraint itself.
        h, w = image.shape[-2:]
        if h % SIZE_DIVISOR or w % SIZE_DIVISOR or h == 0 or w == 0:
            padded = tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (h, w))
            raise ValueError(
                f"{name}: image sides must be multiples of {SIZE_DIVISOR}, got {h}x{w}: resize or pad it, for example to "
                f"{padded[0]}x{padded[1]} (MMDetection: pad_size_divisor={SIZE_DIVISOR} in the data preprocessor)"
            )


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


def _drop_edges(nested: nn.ModuleDict, is_needed: Callable[[int], bool]) -> None:
    """Drop edges by their target stream."""
    for source, edges in list(nested.items()):
        edges = cast(nn.ModuleDict, edges)
        for target in list(edges):
            if not is_needed(int(target)):
                del edges[target]
        if not edges:
            del nested[source]


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
