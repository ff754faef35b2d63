"""Models by name, by config and by function; what is wrong with a name is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from revbifpn.memory.sources import (
    CallableSubject,
    ConfigSubject,
    Settings,
    SubjectError,
    TimmSubject,
    count_macs,
    count_parameters,
    find_subject,
    profile_subject,
)

ROOT = Path(__file__).parents[2]
PREDICT = Settings(optimizer=None)


class NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y if y.max() > 0 else -y


def make_value_dependent() -> nn.Module:
    return NeedsValues()


def make_nothing() -> int:
    return 3


def make_with_argument(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 3)


def test_timm_names() -> None:
    subject = find_subject("revbifpn_s3")
    assert isinstance(subject, TimmSubject)
    assert subject.image == (288, 288)
    assert subject.top1 == 81.1
    assert subject.family == "revbifpn"
    assert find_subject("tf_efficientnet_b7").image == (600, 600)
    assert find_subject("tf_efficientnet_b7").family == "efficientnet"
    assert find_subject("mobilenetv3_large_100").top1 is None


def test_parameters_and_macs() -> None:
    subject = find_subject("revbifpn_s0")
    assert count_parameters(subject, (224, 224)) == 3_419_196
    macs = count_macs(subject, (224, 224))
    assert macs == pytest.approx(0.2694e9, rel=1e-3)  # convolutions and the linear layer alone: benchmarks/macs.py
    assert count_macs(subject, (448, 448)) == pytest.approx(4 * macs, rel=0.01)
    # He et al. print 3.8 G for ResNet-50; timm's has its stride in the 3x3 convolution, which makes it 4.1 G.
    assert count_macs(find_subject("resnet50"), (224, 224)) == pytest.approx(4.09e9, rel=0.01)


def test_models_of_one_image_size_are_built_for_it() -> None:
    subject = find_subject("vit_tiny_patch16_224")
    assert subject.fixed_size
    small = profile_subject(subject, "stored", 2, (96, 96), PREDICT)
    assert small.peak < profile_subject(subject, "stored", 2, (224, 224), PREDICT).peak


def test_functions() -> None:
    subject = find_subject("tests.memory.conftest:make_tiny")
    assert isinstance(subject, CallableSubject)
    assert subject.modes == ("reversible", "exact", "stored")
    assert profile_subject(subject, "exact", 2, (32, 32), PREDICT).mode == "exact"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("revbifpn_s9", r"unknown model 'revbifpn_s9': did you mean revbifpn_s\d"),
        ("no_such_thing_at_all_xyz", "unknown model 'no_such_thing_at_all_xyz'.*Give a timm model name"),
        ("no_such_module:make", "module 'no_such_module' cannot be imported"),
        ("tests.memory.conftest:no_such", "has no 'no_such'"),
        ("missing.py", "config not found: missing.py"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        find_subject(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make_nothing", "returned int, not a torch.nn.Module"),
        ("make_with_argument", r"make_with_argument\(width.*failed without"),
    ],
)
def test_functions_that_make_no_model(name: str, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        find_subject(f"tests.memory.test_sources:{name}").build((32, 32))


def test_a_model_that_needs_values() -> None:
    subject = find_subject("tests.memory.test_sources:make_value_dependent")
    with pytest.raises(RuntimeError, match=r"make_value_dependent: operator aten::_local_scalar_dense.*--measure"):
        profile_subject(subject, "stored", 2, (32, 32), PREDICT)
    assert profile_subject(subject, "stored", 2, (32, 32), Settings(optimizer=None, method="measure")).peak > 0


def test_an_image_size_that_the_model_does_not_take() -> None:
    with pytest.raises(
        SubjectError, match=r"batch 2 at 100x100: ValueError: RevBiFPN-s0: image sides must be multiples of 32"
    ):
        profile_subject(find_subject("revbifpn_s0"), "stored", 2, (100, 100), PREDICT)


def test_an_unknown_mode() -> None:
    with pytest.raises(SubjectError, match="resnet18 has no mode 'reversible': choose from stored, checkpointing"):
        profile_subject(find_subject("resnet18"), "reversible", 2, (64, 64), PREDICT)


class TestConfigs:
    def test_unreadable_ones(self, tmp_path: Path) -> None:
        broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
        broken.write_text("model = dict(\n")
        empty.write_text("x = 1\n")
        with pytest.raises(SubjectError, match=r"broken.py cannot be read: SyntaxError"):
            find_subject(str(broken))
        with pytest.raises(SubjectError, match="has no 'model'"):
            find_subject(str(empty))
        wrong = tmp_path / "wrong.py"
        wrong.write_text("model = dict(type='NoSuchDetector')\n")
        with pytest.raises(SubjectError, match="the model of wrong cannot be built.*NoSuchDetector"):
            find_subject(str(wrong)).build((64, 64))

    def test_detectors_take_their_image_size_from_the_pipeline(self) -> None:
        coco = find_subject(str(ROOT / "configs/mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"))
        assert isinstance(coco, ConfigSubject)
        assert coco.image == (800, 1344)  # 1333x800, padded to multiples of 32
        assert (coco.batch, coco.optimizer) == (2, "sgd")
        assert find_subject("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py").image == (800, 1344)

    def test_a_classifier_of_this_project(self) -> None:
        subject = find_subject(str(ROOT / "configs/fashion_mnist/revbifpn-s0_fashion-mnist.py"))
        assert (subject.image, subject.batch, subject.optimizer) == ((64, 64), 128, "adamw")
        predicted, measured = (
            profile_subject(subject, "reversible", 2, (64, 64), Settings(method=method)) for method in ("predict", "measure")
        )
        assert predicted.optimizer == "adamw"
        assert predicted.peak == pytest.approx(measured.peak, rel=0.03)

    def test_a_detector_of_mmdetection(self) -> None:
        """One stage, focal loss, five levels: nothing of it is known to the profiler."""
        subject = find_subject("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py")
        predicted, measured = (
            profile_subject(subject, "stored", 1, (128, 192), Settings(optimizer=None, method=method))
            for method in ("predict", "measure")
        )
        assert predicted.peak == pytest.approx(measured.peak, rel=0.03)
        assert predicted.stages["backbone (ResNet)"] == pytest.approx(measured.stages["backbone (ResNet)"], rel=0.03)
