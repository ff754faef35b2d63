"""The RevBiFPN family, S0 to S6, as plain data (RevBiFPN, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

#: Strides of the four streams, finest first.
STRIDES = (4, 8, 16, 32)
#: Input sides must be multiples of the coarsest stride.
SIZE_DIVISOR = STRIDES[-1]

_BASE_CHANNELS = (48, 64, 80, 160)
_BASE_NECK_CHANNELS = (48, 64, 128, 320)
_BASE_FC_FEATURES = 1280


@dataclass(frozen=True)
class StreamSpec:
    """What the MBConvs of one stream look like, the same in every variant."""

    kernel: int  # depthwise kernel of its RevBlocks
    up_kernel: int  # depthwise kernel of the up edges that leave it
    expand: int  # expand ratio in the body
    se_ratio: float  # squeeze-excite ratio in the body, 0 for none
    neck_expand: int  # the same two in neck and head
    neck_se_ratio: float


STREAMS = (
    StreamSpec(kernel=3, up_kernel=3, expand=1, se_ratio=0.25, neck_expand=1, neck_se_ratio=0.25),
    StreamSpec(kernel=5, up_kernel=3, expand=1, se_ratio=0.25, neck_expand=2, neck_se_ratio=0.25),
    StreamSpec(kernel=5, up_kernel=3, expand=2, se_ratio=0.125, neck_expand=2, neck_se_ratio=0.125),
    StreamSpec(kernel=5, up_kernel=5, expand=2, se_ratio=0.0, neck_expand=2, neck_se_ratio=0.125),
)


@dataclass(frozen=True)
class Variant:
    """One size of RevBiFPN.

    Attributes:
        width: exact channel multiplier; channels are scaled and rounded down to multiples of 16.
        num_ext_layers: extension stages after the growing ones.
        image_size: side of the square training image in pixels.
        drop_rate: dropout before the classifier, in training.
        drop_path_rate: stochastic depth rate of the last stage, in training.
    """

    name: str
    width: Fraction
    num_ext_layers: int
    image_size: int
    drop_rate: float
    drop_path_rate: float

    def _scale(self, channels: int) -> int:
        return int(self.width * channels) // 16 * 16

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the body's streams, finest first."""
        return tuple(map(self._scale, _BASE_CHANNELS))

    @property
    def neck_channels(self) -> tuple[int, ...]:
        """Channels of the pyramid's levels, finest first."""
        return tuple(map(self._scale, _BASE_NECK_CHANNELS))

    @property
    def fc_features(self) -> int:
        """Channels that the classifier sees."""
        return self._scale(_BASE_FC_FEATURES)

    @property
    def stem_channels(self) -> int:
        """Channels to which the image's are repeated before space-to-depth by 4."""
        return self.channels[0] // STRIDES[0] ** 2

    @property
    def num_stages(self) -> int:
        """Growing and extension stages; each ends in a RevSilo."""
        return len(STRIDES) - 1 + self.num_ext_layers


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("s0", Fraction(1), 2, 224, 0.25, 0.0),
        Variant("s1", Fraction(4, 3), 2, 256, 0.25, 0.0),
        Variant("s2", Fraction(2), 2, 256, 0.3, 0.0),
        Variant("s3", Fraction(8, 3), 3, 288, 0.3, 0.05),
        Variant("s4", Fraction(4), 4, 320, 0.4, 0.1),
        Variant("s5", Fraction(16, 3), 4, 352, 0.4, 0.1),
        Variant("s6", Fraction(20, 3), 5, 352, 0.6, 0.3),
    )
}


def get_variant(variant: str | Variant) -> Variant:
    """Look a variant up by name (``"s0"`` to ``"s6"``); a Variant of your own passes through.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(variant, Variant):
        return variant
    key = str(variant).lower().removeprefix("revbifpn_")
    if key not in VARIANTS:
        raise ValueError(f"unknown RevBiFPN variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[key]
