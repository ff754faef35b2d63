"""Training steps of MMDetection's detectors without data: plausible ground truth, and proposals that fill every quota.

A detector's step depends on values in two places. Anchors, ground truth and matching are arithmetic on small tensors, which
a prediction runs for real. Proposals come out of the network, and from non-maximum suppression; here they are drawn around
the ground truth, so many that the samplers find all the positive examples they ask for, in measured and predicted steps
alike. So a figure is that of a step late in training, when proposals are good: the largest one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from revbifpn.memory.fake import UnsupportedOperatorError

#: Objects in each image of a step.
NUM_OBJECTS = 8


def detection_inputs(batch: int, image: tuple[int, int], num_classes: int) -> dict[str, Any]:
    """Return a batch as a detector's data preprocessor hands it on, ``NUM_OBJECTS`` boxes with masks in each image.

    Returns:
        ``inputs``, a meta tensor of shape (batch, 3, height, width), and ``data_samples``.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples = []
    height, width = image
    for index in range(batch):
        generator = _generator(index)
        boxes = _boxes(NUM_OBJECTS, image, generator)
        masks = np.zeros((NUM_OBJECTS, height, width), dtype=np.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(num_classes, (NUM_OBJECTS,), generator=generator)
        meta = dict(img_shape=image, ori_shape=image, pad_shape=image, batch_input_shape=image, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {"inputs": torch.empty(batch, 3, height, width, device="meta"), "data_samples": samples, "mode": "loss"}


def _generator(index: int) -> torch.Generator:
    """Image ``index`` has the same objects wherever they are drawn."""
    return torch.Generator().manual_seed(index)


def _boxes(count: int, image: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(count, 4) boxes of a sixth to a half of the image's sides, inside of it."""
    sides = torch.tensor([image[1], image[0]], dtype=torch.float32)
    size = sides * (1 / 6 + torch.rand(count, 2, generator=generator) / 3)
    corner = (sides - size) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + size], dim=1)


def sum_of_losses(losses: Any) -> Tensor:
    """Return the sum of the losses that a model returns by name, added up as MMEngine does."""
    values = [v for key, value in losses.items() if "loss" in key for v in (value if isinstance(value, list) else [value])]
    return torch.stack([value.mean() for value in values]).sum()


@contextmanager
def without_values(detector: nn.Module) -> Iterator[None]:
    """While active, a detector's step needs no values of what its network computes."""
    roi_align = importlib.import_module("mmcv.ops.roi_align")  # the package's attribute of that name is the function
    with ExitStack() as stack:
        stack.enter_context(_replaced(roi_align, "ext_module", _Extension(roi_align.ext_module)))
        # The proposals hang on the one head: other detectors keep their own.
        if (head := getattr(detector, "rpn_head", None)) is not None:
            stack.enter_context(_replaced(head, "predict_by_feat", _proposals(detector)))
        # A cascade's later stages take the boxes of the stage before.
        heads = getattr(getattr(detector, "roi_head", None), "bbox_head", None)
        for stage in heads if isinstance(heads, nn.ModuleList) else ():
            stack.enter_context(_replaced(stage, "refine_bboxes", _unrefined))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object, not its class, another attribute for a while."""
    own = vars(owner)
    was_there, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if was_there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _unrefined(sampled: list[Any], *_: Any) -> list[Any]:
    """Each image's sampled boxes, but its objects', where they were."""
    from mmengine.structures import InstanceData

    boxes = [torch.cat([image.pos_priors[image.pos_is_gt == 0], image.neg_priors]) for image in sampled]
    return [InstanceData(bboxes=own) for own in boxes]


def _proposals(detector: Any) -> Callable[..., list[Any]]:
    def predict_by_feat(*outputs: Any, batch_img_metas: Any, cfg: Any = None, **kwargs: Any) -> list[Any]:
        from mmengine.structures import InstanceData

        count = (cfg or detector.rpn_head.test_cfg).max_per_img
        device = "cpu" if isinstance(outputs[0][0], FakeTensor) else outputs[0][0].device
        results = []
        for index, meta in enumerate(batch_img_metas):
            # One half around the objects of `detection_inputs`, a little moved; the other anywhere.
            generator = _generator(index)
            objects = _boxes(NUM_OBJECTS, meta["img_shape"], generator)
            near = objects.repeat(-(-count // (2 * NUM_OBJECTS)), 1)
            size = (near[:, 2:] - near[:, :2]).repeat(1, 2)
            near = near + size * 0.1 * (torch.rand(near.shape, generator=generator) - 0.5)
            anywhere = _boxes(max(0, count - len(near)), meta["img_shape"], generator)
            boxes = torch.cat([near, anywhere])[:count]
            boxes, labels = boxes.to(device), torch.zeros(count, dtype=torch.long, device=device)
            results.append(InstanceData(bboxes=boxes, scores=boxes.new_ones(count), labels=labels))
        return results

    return predict_by_feat


class _Extension:
    """Stands before mmcv's compiled operators: on fake tensors those that write into their arguments have nothing to do."""

    _WRITES = frozenset({"roi_align_forward", "roi_align_backward"})

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(arg, FakeTensor) for arg in args):
                return real(*args, **kwargs)
            if name in self._WRITES:
                return None
            raise UnsupportedOperatorError(f"operator mmcv.{name} does not run on fake tensors")

        return run
