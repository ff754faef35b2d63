"""Detectors' steps without values: what stands in for them is there while a step runs, and gone afterwards."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import revbifpn
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.detection import sum_of_losses, without_values
from revbifpn.memory.steps import Settings, profile_subject

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def detector() -> Any:
    pytest.importorskip("mmdet")
    config = ROOT / "configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"
    return ConfigSubject.from_file(str(config)).build((64, 64))


def test_proposals_fill_every_quota(detector: Any) -> None:
    with without_values(detector):
        outputs = [torch.zeros(2, 3, 8, 8)], [torch.zeros(2, 12, 8, 8)]
        metas = [{"img_shape": (64, 96)}] * 2
        proposals = detector.rpn_head.predict_by_feat(*outputs, batch_img_metas=metas)
    assert len(proposals) == 2
    for found in proposals:
        assert len(found.bboxes) == len(found.scores) == detector.rpn_head.test_cfg.max_per_img
        x0, y0, x1, y1 = found.bboxes.unbind(1)
        assert bool(((x1 > x0) & (y1 > y0)).all())


def test_everything_is_put_back_even_after_an_error(detector: Any) -> None:
    roi_align = importlib.import_module("mmcv.ops.roi_align")
    extension, method = roi_align.ext_module, detector.rpn_head.predict_by_feat

    def fail() -> None:
        with without_values(detector):
            assert roi_align.ext_module is not extension
            assert detector.rpn_head.predict_by_feat != method
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert roi_align.ext_module is extension
    assert detector.rpn_head.predict_by_feat == method
    assert "predict_by_feat" not in vars(detector.rpn_head), "the class's own method, not a copy on the instance"


def test_what_was_on_the_instance_before_is_there_again(detector: Any) -> None:
    own = detector.rpn_head.predict_by_feat = lambda *args, **kwargs: []
    try:
        with without_values(detector):
            assert detector.rpn_head.predict_by_feat is not own
        assert detector.rpn_head.predict_by_feat is own
    finally:
        del detector.rpn_head.predict_by_feat


def test_the_stages_of_a_cascade_need_no_values() -> None:
    """Each stage takes the boxes that the one before has sampled; the objects themselves are added by its own sampler."""
    pytest.importorskip("mmdet")
    subject = ConfigSubject.from_file(str(ROOT / "configs/cascade_mask_rcnn/cascade-mask-rcnn_revbifpn-s0_hrfpn_20e_coco.py"))
    for sampler in subject.cfg.model.train_cfg.rcnn:
        sampler.sampler.num = 16
    report = profile_subject(subject, "reversible", 1, (64, 96), Settings(device="cuda"))
    stages = {record.stage for record in report.tensors} | {point.module for point in report.timeline}
    assert all(any(f"roi_head.bbox_head.{stage}" in name for name in stages) for stage in range(3))


def test_losses_are_added_up_as_mmengine_does(detector: Any) -> None:
    losses = {
        "loss_cls": torch.tensor([1.0, 3.0]),
        "loss_bbox": [torch.tensor(2.0), torch.tensor(4.0)],
        "acc": torch.tensor(90.0),
    }
    assert sum_of_losses(losses) == 8
    assert detector.parse_losses(losses)[0] == 8


def test_the_package_imports_no_test_doubles() -> None:
    sources = list(Path(revbifpn.__file__).parent.rglob("*.py"))
    assert len(sources) > 30
    assert [path for path in sources if "unittest" in path.read_text()] == []
