"""Training steps of subjects: what they count, and what is said when one cannot be run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings, count_macs, count_parameters, profile_subject
from revbifpn.memory.subject import SubjectError

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


def test_parameters_and_macs() -> None:
    subject = find_subject("revbifpn_s0")
    assert count_parameters(subject, (224, 224)) == 3_419_196
    macs = count_macs(subject, (224, 224))
    assert macs == pytest.approx(0.2694e9, rel=1e-3)  # convolutions and the linear layer alone: benchmarks/macs.py
    assert count_macs(subject, (448, 448)) == pytest.approx(4 * macs, rel=0.01)
    # He et al. print 3.8 G for ResNet-50; timm's has its stride in the 3x3 convolution, which makes it 4.1 G.
    assert count_macs(find_subject("resnet50"), (224, 224)) == pytest.approx(4.09e9, rel=0.01)


def test_steps_of_models_with_one_image_size() -> None:
    subject = find_subject("vit_tiny_patch16_224")
    small = profile_subject(subject, "stored", 2, (96, 96), PREDICT)
    assert small.peak < profile_subject(subject, "stored", 2, (224, 224), PREDICT).peak


def test_steps_of_functions() -> None:
    report = profile_subject(find_subject("tests.memory.conftest:make_tiny"), "exact", 2, (32, 32), PREDICT)
    assert (report.mode, report.batch, report.image) == ("exact", 2, (32, 32))


def test_a_model_that_needs_values() -> None:
    subject = find_subject("tests.memory.test_steps:make_value_dependent")
    with pytest.raises(RuntimeError, match=r"make_value_dependent: operator aten::_local_scalar_dense.*--measure"):
        profile_subject(subject, "stored", 2, (32, 32), PREDICT)
    assert profile_subject(subject, "stored", 2, (32, 32), Settings(optimizer=None, method="measure")).peak > 0


def test_an_image_size_that_the_model_does_not_take() -> None:
    with pytest.raises(
        SubjectError, match=r"batch 2 at 100x100: ValueError: RevBiFPN-s0: image sides must be multiples of 32"
    ):
        profile_subject(find_subject("revbifpn_s0"), "stored", 2, (100, 100), PREDICT)
    with pytest.raises(SubjectError, match=r"revbifpn_s0 cannot run.*image sides must be multiples of 32"):
        count_macs(find_subject("revbifpn_s0"), (100, 100))


def test_an_unknown_mode() -> None:
    with pytest.raises(SubjectError, match="resnet18 has no mode 'reversible': choose from stored, checkpointing"):
        profile_subject(find_subject("resnet18"), "reversible", 2, (64, 64), PREDICT)
