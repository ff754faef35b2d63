"""MMDetection's region proposal head without its hidden maps."""

from __future__ import annotations

from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from revbifpn.integrations.mmdet.rows import rerun_by_rows


@MODELS.register_module()
class LeanRPNHead(RPNHead):
    """MMDetection's ``RPNHead``, of which only scores and boxes are kept; same arguments, same state-dict keys.

    The hidden maps of all levels, together as large as the pyramid, are computed again in backward, some rows at a time.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> scores (N, anchors, H, W) and box deltas (N, 4 * anchors, H, W)."""
        cls_score, bbox_pred = rerun_by_rows(_Level(self), x, margin=self.num_convs, channels=self.feat_channels)
        return cls_score, bbox_pred


class _Level(nn.Module):
    """MMDetection's head on one level, as a module of its own."""

    def __init__(self, head: LeanRPNHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = RPNHead.forward_single(self.head, x)
        return scores, deltas
