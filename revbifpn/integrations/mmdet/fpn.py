"""MMDetection's FPN without its finest lateral map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor

from revbifpn.integrations.mmdet.levels import extra_conv_levels, extra_levels
from revbifpn.integrations.mmdet.recomputed import rerun_in_backward, uses_batch_statistics


@MODELS.register_module()
class LeanFPN(FPN):
    """MMDetection's ``FPN``: same arguments, same state-dict keys, same values.

    The finest lateral map, which holds three quarters of what FPN keeps, is computed again in backward, by a 1x1 convolution.
    Norms that need the whole batch would move their running statistics twice: with them the neck is MMDetection's own.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the backbone's levels, finest first, to ``num_outs`` levels of ``out_channels``."""
        used = inputs[self.start_level : self.backbone_end_level]
        if len(used) < 2 or len(inputs) != self.num_ins or uses_batch_statistics(self):
            return tuple(super().forward(inputs))
        laterals = [conv(level) for conv, level in zip(self.lateral_convs[1:], used[1:], strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + self._upsample(laterals[i], laterals[i - 1])
        outputs = [rerun_in_backward(self._finest, used[0], laterals[0])]
        outputs += [conv(lateral) for conv, lateral in zip(self.fpn_convs[1:], laterals, strict=False)]
        if not self.add_extra_convs:
            return tuple(extra_levels(outputs, self.num_outs))
        sources = {"on_input": used[-1], "on_lateral": laterals[-1], "on_output": outputs[-1]}
        extra_convs = self.fpn_convs[len(outputs) :]
        source = sources[self.add_extra_convs]
        return tuple(extra_conv_levels(outputs, extra_convs, source, self.relu_before_extra_convs))

    def _finest(self, level: Tensor, coarser: Tensor) -> Tensor:
        lateral = self.lateral_convs[0](level)
        output: Tensor = self.fpn_convs[0](lateral + self._upsample(coarser, lateral))
        return output

    def _upsample(self, coarser: Tensor, like: Tensor) -> Tensor:
        size: dict[str, Any] = {} if "scale_factor" in self.upsample_cfg else {"size": like.shape[2:]}
        return F.interpolate(coarser, **size, **self.upsample_cfg)
