"""HRNet's feature pyramid (HRFPN) without its concatenation of all levels at the finest stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.necks import HRFPN
from mmdet.registry import MODELS
from torch import Tensor, nn

from revbifpn.integrations.mmdet.levels import check_levels
from revbifpn.integrations.mmdet.recomputed import rerun_in_backward


@MODELS.register_module()
class LeanHRFPN(HRFPN):
    r"""MMDetection's ``HRFPN``: same arguments, same state-dict keys, same values to rounding.

    HRFPN brings all levels to the finest stride, concatenates them and reduces their channels by a 1x1 convolution. That
    convolution commutes with bilinear upsampling, so each level is reduced where it is small:

    .. code-block:: text

        conv(cat(up(x_0), ..., up(x_n))) = conv_0(x_0) + sum_i up(conv_i(x_i)) + bias

    with conv_i the columns of the weight that belong to level i. For RevBiFPN-S3 at 800x1344 the concatenation is 396 MB an
    image and the convolution 25.3 GMACs; this takes 3.5. The sum is not kept either: backward computes it again.

    ``with_cp`` changes nothing: the 3x3 convolutions that it would run again give the neck's outputs. Where the reducing
    convolution is not MMDetection's plain one (``conv_cfg``, hooks, parametrizations), the neck is MMDetection's own.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map levels of strides s, 2s, 4s, ... to ``num_outs`` levels of ``out_channels``, finest first.

        Raises:
            ValueError: for another number of levels, or a level that is not half as large as the one before.
        """
        if not (_is_plain(self.reduction_conv) and _is_plain(self.fpn_convs[0])):
            return tuple(super().forward(inputs))
        check_levels(inputs, self.num_ins, "LeanHRFPN")
        # One half of the sum's channels after the other: neither it nor its gradient is ever there as a whole.
        (finest, first), (rest, second) = (rerun_in_backward(self._finest_and_pooled, half, *inputs) for half in range(2))
        outputs = [finest + rest]
        if self.num_outs > 1:
            pooled = torch.cat([first, second], dim=1)
            outputs.append(self.fpn_convs[1](pooled))
        for conv in self.fpn_convs[2:]:
            pooled = self.pooling(pooled, kernel_size=2, stride=2)
            outputs.append(conv(pooled))
        return tuple(outputs)

    def _finest_and_pooled(self, half: int, *levels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what half of the sum's channels give to the finest output, and these channels at half the resolution."""
        reduced = self._reduce(half, levels)
        # What comes last is not run again: its inputs are all that its backward needs.
        pooled = self.pooling(reduced, kernel_size=2, stride=2) if self.num_outs > 1 else None
        conv = self.fpn_convs[0].conv
        weight = conv.weight.chunk(2, dim=1)[half]
        return F.conv2d(reduced, weight, None if half else conv.bias, conv.stride, conv.padding), pooled

    def _reduce(self, half: int, levels: Sequence[Tensor]) -> Tensor:
        """Half of the channels of the sum of all levels at the finest stride."""
        # The finest level comes last: what the terms before it are upsampled from is gone then.
        first, *rest = [*range(1, len(levels)), 0]
        reduced = self._term(half, first, levels[first])
        for i in rest:
            reduced += self._term(half, i, levels[i])
        return reduced

    def _term(self, half: int, i: int, level: Tensor) -> Tensor:
        conv = self.reduction_conv.conv
        weight = conv.weight.chunk(2)[half].split(self.in_channels, dim=1)[i]
        if i == 0:
            return F.conv2d(level, weight, conv.bias.chunk(2)[half])
        return F.interpolate(F.conv2d(level, weight), scale_factor=2**i, mode="bilinear")


def _is_plain(module: ConvModule) -> bool:
    """Return whether a ConvModule is a convolution with bias and nothing else, with nobody watching."""
    parts: list[nn.Module] = [module, module.conv]
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in parts)
    plain = type(module) is ConvModule and type(module.conv) is nn.Conv2d and module.conv.groups == 1
    return plain and not (hooked or module.with_norm or module.with_activation or module.with_spectral_norm)
