"""What the necks of this package share: levels that must fit each other, and levels beyond the backbone's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def check_levels(levels: Sequence[Tensor], expected: int, neck: str) -> None:
    """Check that there are as many levels as expected, each half as large as the one before.

    Raises:
        ValueError: naming the level that does not fit, and the remedy.
    """
    if len(levels) != expected:
        raise ValueError(f"{neck}: in_channels has {expected} levels, the backbone gave {len(levels)}")
    height, width = levels[0].shape[-2:]
    for i, level in enumerate(levels):
        h, w = level.shape[-2:]
        if (h << i, w << i) != (height, width):
            raise ValueError(
                f"{neck}: level {i} is {h}x{w}, which is not level 0's {height}x{width} divided by {2**i}: set "
                "pad_size_divisor in the data preprocessor to the stride of the coarsest level, 32 for most backbones"
            )


def extra_levels(finest_first: Sequence[Tensor], num_outs: int) -> list[Tensor]:
    """Return the levels and, up to ``num_outs``, every second pixel of the last one, as FPN makes them for Faster R-CNN."""
    levels = list(finest_first)
    while len(levels) < num_outs:
        levels.append(F.max_pool2d(levels[-1], 1, stride=2))
    return levels


def extra_conv_levels(levels: Sequence[Tensor], convs: Iterable[nn.Module], source: Tensor, relu: bool) -> list[Tensor]:
    """Return the levels and one more for each convolution, as FPN makes them for RetinaNet: each from the one before it.

    Args:
        source: what the first convolution reads.
        relu: put a ReLU between the convolutions.
    """
    extended = list(levels)
    for conv in convs:
        extended.append(conv(source))
        source = F.relu(extended[-1]) if relu else extended[-1]
    return extended
