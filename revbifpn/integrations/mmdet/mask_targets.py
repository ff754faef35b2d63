"""Mask targets without a copy of a full-size mask for each proposal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import roi_align
from mmdet.structures.mask import BitmapMasks
from mmdet.structures.mask.mask_target import mask_target_single
from torch import Tensor
from torch.nn.modules.utils import _pair


def lean_mask_targets(proposals: Sequence[Tensor], gt_indices: Sequence[Tensor], gt_masks: Sequence[Any], cfg: Any) -> Tensor:
    """Return what ``mmdet.structures.mask.mask_target`` returns, bit for bit.

    MMDetection aligns a full-size copy of its object's mask for each proposal, 4.3 MB in float32 at 800x1344. RoIAlign takes
    several boxes of one image, so here each mask is brought to the device once, for all the proposals of its object.

    Args:
        proposals: for each image the positive proposals, (n, 4).
        gt_indices: for each image the index of each proposal's object, (n,).
        gt_masks: for each image the objects' masks. Others than ``BitmapMasks`` go MMDetection's way.
        cfg: has ``mask_size``, and ``soft_mask_target`` where targets shall not be rounded to 0 and 1.

    Returns:
        (sum of n, height, width) of ``mask_size``, in float32, in the order of the proposals.
    """
    return torch.cat([_of_image(*image, cfg) for image in zip(proposals, gt_indices, gt_masks, strict=True)])


def _of_image(proposals: Tensor, gt_indices: Tensor, masks: Any, cfg: Any) -> Tensor:
    if type(masks) is not BitmapMasks or not isinstance(proposals, Tensor) or not len(masks) or not len(proposals):
        return mask_target_single(proposals, gt_indices, masks, cfg)
    size = _pair(cfg.mask_size)
    boxes = torch.stack([side.clamp(0, limit) for side, limit in zip(proposals.unbind(1), _limits(masks), strict=True)], dim=1)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)  # of the one image that the mask is
    targets = boxes.new_empty(len(boxes), *size)
    of_object = gt_indices.cpu()
    for index in of_object.unique().tolist():
        mine = (of_object == index).nonzero().squeeze(1).to(rois.device)
        mask = torch.from_numpy(masks.masks[index]).to(rois.device).to(rois.dtype)
        targets[mine] = roi_align(mask[None, None], rois[mine], size, 1.0, 0, "avg", True).squeeze(1)
    return targets.float() if cfg.get("soft_mask_target", False) else (targets >= 0.5).float()


def _limits(masks: BitmapMasks) -> tuple[int, int, int, int]:
    return masks.width, masks.height, masks.width, masks.height
