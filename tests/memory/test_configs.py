"""Models of MMEngine configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import SubjectError

ROOT = Path(__file__).parents[2]


def test_unreadable_ones(tmp_path: Path) -> None:
    broken, empty, wrong = (tmp_path / f"{name}.py" for name in ("broken", "empty", "wrong"))
    broken.write_text("model = dict(\n")
    empty.write_text("x = 1\n")
    wrong.write_text("model = dict(type='NoSuchDetector')\n")
    with pytest.raises(SubjectError, match=r"broken.py cannot be read: SyntaxError"):
        find_subject(str(broken))
    with pytest.raises(SubjectError, match=r"empty.py has no 'model'"):
        find_subject(str(empty))
    with pytest.raises(SubjectError, match="the model of wrong cannot be built.*NoSuchDetector"):
        find_subject(str(wrong)).build((64, 64))


def test_building_leaves_the_config_alone() -> None:
    """Weights are not loaded, but the config still names them."""
    pytest.importorskip("mmdet")
    subject = ConfigSubject.from_file(str(ROOT / "configs/mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"))
    subject.cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="not_there.pth")
    before = subject.cfg.pretty_text
    subject.build((64, 64))
    assert subject.cfg.pretty_text == before


def test_detectors_take_their_image_size_from_the_pipeline() -> None:
    pytest.importorskip("mmdet")
    coco = find_subject(str(ROOT / "configs/mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"))
    assert isinstance(coco, ConfigSubject)
    assert coco.image == (800, 1344)  # 1333x800, padded to multiples of 32
    assert (coco.batch, coco.optimizer) == (2, "sgd")
    assert find_subject("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py").image == (800, 1344)


def test_a_classifier_of_this_project() -> None:
    subject = find_subject(str(ROOT / "configs/fashion_mnist/revbifpn-s0_fashion-mnist.py"))
    assert (subject.image, subject.batch, subject.optimizer) == ((64, 64), 128, "adamw")
    assert subject.top1 is None, "it has ten classes: ImageNet's accuracy is not its own"
    predicted, measured = (
        profile_subject(subject, "reversible", 2, (64, 64), Settings(method=method)) for method in ("predict", "measure")
    )
    assert predicted.optimizer == "adamw"
    assert predicted.peak == pytest.approx(measured.peak, rel=0.03)


def test_a_detector_of_mmdetection() -> None:
    """One stage, focal loss, five levels: nothing of it is known to the profiler."""
    pytest.importorskip("mmdet")
    subject = find_subject("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py")
    predicted, measured = (
        profile_subject(subject, "stored", 1, (128, 192), Settings(optimizer=None, method=method))
        for method in ("predict", "measure")
    )
    assert predicted.peak == pytest.approx(measured.peak, rel=0.03)
    assert predicted.stages["backbone (ResNet)"] == pytest.approx(measured.stages["backbone (ResNet)"], rel=0.03)
