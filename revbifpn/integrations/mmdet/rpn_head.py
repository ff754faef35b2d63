"""MMDetection's region proposal head, run again in backward image by image."""

from __future__ import annotations

from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import Tensor

from revbifpn.integrations.mmdet.recomputed import rerun_by_parts


@MODELS.register_module()
class LeanRPNHead(RPNHead):
    """MMDetection's ``RPNHead``, of which only scores and boxes are kept; same arguments, same state-dict keys.

    The hidden maps of all levels, as large as the pyramid, are computed again in backward, at most some 64 MiB at a time.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> scores (N, anchors, H, W) and box deltas (N, 4 * anchors, H, W)."""
        # No layer of this head mixes samples.
        elements = self.feat_channels * x.shape[-2] * x.shape[-1]
        cls_score, bbox_pred = rerun_by_parts(super().forward_single, x, elements)
        return cls_score, bbox_pred
