"""Lean mask targets against MMDetection's, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks, mask_target
from mmengine.config import ConfigDict
from torch import Tensor

from revbifpn.integrations.mmdet.mask_targets import lean_mask_targets

HEIGHT, WIDTH = 60, 90


def image(num_objects: int, num_proposals: int, dtype: Any = np.uint8, seed: int = 0) -> tuple[Tensor, Tensor, BitmapMasks]:
    """Proposals, some of them beyond the image's borders or empty, their objects, and blobs as masks."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_proposals, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) - 8
    size = torch.rand(num_proposals, 2, generator=generator) * 60
    size[::7] = 0
    proposals = torch.cat([corner, corner + size], dim=1)
    indices = torch.randint(num_objects, (num_proposals,), generator=generator)
    smooth = torch.nn.functional.interpolate(torch.randn(1, num_objects, 6, 9, generator=generator), (HEIGHT, WIDTH))
    return proposals, indices, BitmapMasks((smooth[0] > 0).numpy().astype(dtype), HEIGHT, WIDTH)


def compare(images: list[tuple[Tensor, Tensor, Any]], cfg: ConfigDict) -> Tensor:
    proposals, indices, masks = (list(x) for x in zip(*images, strict=True))
    ours = lean_mask_targets(proposals, indices, masks, cfg)
    theirs = mask_target(proposals, indices, masks, cfg)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    return ours


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mask_size", [28, (7, 11)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_equal_bit_for_bit(soft: bool, mask_size: Any, dtype: Any) -> None:
    cfg = ConfigDict(mask_size=mask_size, soft_mask_target=soft)
    targets = compare([image(5, 40, dtype), image(1, 9, dtype, seed=1)], cfg)
    assert len(targets) == 49
    assert 0.1 < targets.mean() < 0.9  # of which some is mask and some is not


def test_proposals_stay_as_they_are() -> None:
    """MMDetection clips them in place on CPU."""
    proposals, indices, masks = image(5, 40)
    before = proposals.clone()
    lean_mask_targets([proposals], [indices], [masks], ConfigDict(mask_size=28))
    assert torch.equal(proposals, before)


def test_images_without_proposals() -> None:
    cfg = ConfigDict(mask_size=28)
    assert len(compare([image(3, 0), image(2, 5)], cfg)) == 5
    assert compare([image(3, 0)], cfg).shape == (0, 28, 28)


def test_polygons_go_mmdetections_way() -> None:
    proposals, _, _ = image(1, 6)
    polygons = [[np.array([10.0, 10, 50, 12, 40, 50])], [np.array([5.0, 5, 80, 5, 80, 55, 5, 55])]]
    masks = PolygonMasks(polygons, HEIGHT, WIDTH)
    proposals = proposals.clamp(min=1)
    proposals[:, 2:] = proposals[:, :2] + 20
    compare([(proposals, torch.tensor([0, 1, 1, 0, 1, 0]), masks)], ConfigDict(mask_size=28))


def test_one_mask_at_a_time() -> None:
    """Of 64 proposals' full-size masks none is made: the largest tensor is one object's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    proposals, indices, masks = image(5, 64)
    with Watch():
        lean_mask_targets([proposals], [indices], [masks], ConfigDict(mask_size=7))
    assert largest == HEIGHT * WIDTH
