"""RevBiFPN's body and neck: an image in, a feature pyramid out (RevBiFPN, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from revbifpn.models.blocks import MBConv, UpEdge, init_weights, repeat_channels
from revbifpn.models.variants import SIZE_DIVISOR, STREAMS, STRIDES, Variant, get_variant
from revbifpn.reversible import RevBlock, ReversibleSequential, RevSilo, SpaceToDepth, StreamWise, recompute
from revbifpn.reversible.exact import DEFAULT_BITS

NUM_BLOCKS = 2  # RevBlocks on each stream of a stage


class RevBiFPNPyramid(nn.Module):
    """The fully reversible body and the neck.

    ``body`` is a :class:`.ReversibleSequential`: space-to-depth by 4, then for each stage the streams' RevBlocks and a
    RevSilo; the first three silos add a stream each. ``neck`` is one MBConv for each stream; it is not reversible and is
    recomputed in backward.

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        in_chans: image channels, at most ``variant.stem_channels``.
        drop_path_rate: stochastic depth rate of the last stage, rising linearly from the first; None for the variant's.
        reversible: False keeps all activations, as an ordinary network ("stored mode"); same weights, same gradients.
        exact: rebuild activations bit for bit (see :mod:`revbifpn.reversible.exact`).
        exact_bits: fractional bits of the exact mode's grid.

    Raises:
        ValueError: for an unknown variant, or image channels that the stem cannot take.
    """

    def __init__(
        self,
        variant: str | Variant,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        reversible: bool = True,
        exact: bool = False,
        exact_bits: int = DEFAULT_BITS,
    ) -> None:
        super().__init__()
        self.variant = get_variant(variant)
        if not 1 <= in_chans <= self.variant.stem_channels:
            raise ValueError(
                f"RevBiFPN-{self.variant.name} takes 1 to {self.variant.stem_channels} image channels, got {in_chans=}: "
                "its stem has no weights that could mix more; choose a wider variant or reduce the channels before it"
            )
        self.in_chans = in_chans
        self.reversible = reversible
        rate = self.variant.drop_path_rate if drop_path_rate is None else drop_path_rate
        layers = _body_layers(self.variant, rate)
        self.body = ReversibleSequential(*layers, reversible=reversible, exact=exact, exact_bits=exact_bits)
        self.neck = nn.ModuleList(
            MBConv(c, out, kernel=5, expand=spec.neck_expand, se_ratio=spec.neck_se_ratio)
            for c, out, spec in zip(self.variant.channels, self.variant.neck_channels, STREAMS, strict=True)
        )
        self.apply(init_weights)

    def stage_layers(self, stage: int) -> list[nn.Module]:
        """The body's layers of one stage, ``0 <= stage < variant.num_stages``."""
        return [self.body[1 + 2 * stage], self.body[2 + 2 * stage]]

    def forward_body(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the four streams, stream i of shape (N, variant.channels[i], H / stride, W / stride).

        Raises:
            ValueError: if the image has another number of channels, or sides that are no multiples of 32.
        """
        self._check_image(image)
        streams: tuple[Tensor, ...] = self.body(repeat_channels(image, self.variant.stem_channels))
        return streams

    def forward_neck(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The body's streams -> the pyramid's levels, with ``variant.neck_channels``."""
        return tuple(self.run(mbconv, stream) for mbconv, stream in zip(self.neck, streams, strict=True))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> four levels, finest first, level i of (N, neck_channels[i], H / stride, W / stride)."""
        return self.forward_neck(self.forward_body(image))

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a module that is not reversible, without keeping its inner activations in reversible mode."""
        output: Tensor = recompute(module, *inputs) if self.reversible else module(*inputs)
        return output

    def _check_image(self, image: Tensor) -> None:
        name = f"RevBiFPN-{self.variant.name}"
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(
                f"{name}: expected an image batch of shape (N, {self.in_chans}, H, W), got {tuple(image.shape)}; "
                "the number of channels is set by in_chans"
            )
        # While exporting, sides may be symbols; the exporter then keeps the constraint itself.
        h, w = image.shape[-2:]
        if h % SIZE_DIVISOR or w % SIZE_DIVISOR or h == 0 or w == 0:
            padded = tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (h, w))
            raise ValueError(
                f"{name}: image sides must be multiples of {SIZE_DIVISOR}, got {h}x{w}: resize or pad it, for example to "
                f"{padded[0]}x{padded[1]} (MMDetection: pad_size_divisor={SIZE_DIVISOR} in the data preprocessor)"
            )


def _body_layers(variant: Variant, drop_path_rate: float) -> list[SpaceToDepth | StreamWise | RevSilo]:
    """Stem, then for each stage the RevBlocks of its streams and its silo."""
    layers: list[SpaceToDepth | StreamWise | RevSilo] = [SpaceToDepth(STRIDES[0])]
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
