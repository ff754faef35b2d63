"""MMDetection's mask head with lean targets, and without the full-size maps of all proposals at once."""

from __future__ import annotations

from typing import Any

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from torch import Tensor

from revbifpn.integrations.mmdet.mask_targets import lean_mask_targets
from revbifpn.integrations.mmdet.recomputed import rerun_by_parts, uses_batch_statistics


@MODELS.register_module()
class LeanFCNMaskHead(FCNMaskHead):
    """MMDetection's ``FCNMaskHead``: same arguments but one, same state-dict keys, same values to rounding.

    Mask targets are computed without a full-size copy of a mask for each proposal (:func:`.lean_mask_targets`). What comes
    after the convolutions (upsampling, activation, logits: most of the head's memory, a tenth of its work) is not kept but run
    again in backward, some proposals at a time.

    Args:
        recompute_convs: run the convolutions again too. Those whose norms need the whole batch are kept all the same.
    """

    def __init__(self, *args: Any, recompute_convs: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute_convs = recompute_convs

    def forward(self, x: Tensor) -> Tensor:
        """Map RoI features (n, in_channels, h, w) to logits (n, classes or 1, scale * h, scale * w)."""
        elements = self.conv_out_channels * (self.scale_factor or 1) ** 2 * x.shape[-2] * x.shape[-1]
        if self.recompute_convs and not uses_batch_statistics(self.convs):
            return rerun_by_parts(super().forward, x, elements)
        for conv in self.convs:
            x = conv(x)
        return rerun_by_parts(self._predict, x, elements)

    def _predict(self, x: Tensor) -> Tensor:
        if self.upsample is not None:
            x = self.upsample(x)
            if self.upsample_method == "deconv":
                x = self.relu(x)
        return self.conv_logits(x)

    def get_targets(self, sampling_results: list[Any], batch_gt_instances: list[Any], rcnn_train_cfg: Any) -> Tensor:
        """Return targets of (positive proposals, height, width), as ``FCNMaskHead.get_targets`` does."""
        return lean_mask_targets(
            [result.pos_priors for result in sampling_results],
            [result.pos_assigned_gt_inds for result in sampling_results],
            [instances.masks for instances in batch_gt_instances],
            rcnn_train_cfg,
        )
