"""Predicted memory equals what the CPU allocator measures, at the peak of the step and at the peak of its forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from revbifpn.memory import MemoryReport
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.sources import TimmSubject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import Size, Subject

from .rules import has_rules

pytestmark = has_rules

#: What a prediction may be off by, of a whole step as of its activations alone. Most are exact to the byte; what is left is
#: scratch memory inside oneDNN's convolutions.
TOLERANCE = 0.03

#: A copy of the CPU's random state, 5 kB. It is made below PyTorch's dispatcher, so a prediction does not see it. Whoever has
#: to replay random numbers makes one to compare with, and keeps another.
RANDOM_STATE = torch.get_rng_state().nbytes

DEMO_CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"


class WithoutStochasticDepth(TimmSubject):
    """A RevBiFPN that draws no random numbers, so that no random states are kept."""

    rate = 0.0

    def build(self, image: Size) -> nn.Module:
        return timm.create_model(self.name, drop_path_rate=self.rate).train()


class WithStochasticDepth(WithoutStochasticDepth):
    """The same with random numbers, as S3 to S6 have them by default."""

    rate = 0.1


def both_ways(subject: Subject, mode: str, batch: int, size: int, **settings: Any) -> tuple[MemoryReport, MemoryReport]:
    """A step predicted, and measured."""
    settings = {"optimizer": None, **settings}
    predicted, measured = (
        profile_subject(subject, mode, batch, (size, size), Settings(method=method, **settings))
        for method in ("predict", "measure")
    )
    return predicted, measured


def forward_peak(report: MemoryReport) -> int:
    """The highest sum of live bytes in the forward pass, above what was there before: no weight's size is in it."""
    before = sum(report.categories[name] for name in ("parameters", "buffers", "inputs", "optimizer state"))
    return max(point.nbytes for point in report.timeline if point.phase == "forward") - before


def check_peak(predicted: MemoryReport, measured: MemoryReport, unseen: int = 2 * RANDOM_STATE) -> None:
    """Total and activations at the peak. The weights of a large model would hide its activations in the total."""
    assert predicted.peak == pytest.approx(measured.peak, rel=TOLERANCE)
    assert predicted.activations == pytest.approx(measured.activations, rel=TOLERANCE, abs=unseen)
    for report in (predicted, measured):
        assert sum(report.categories.values()) == report.peak


def check(subject: Subject, mode: str, batch: int, size: int, **settings: Any) -> None:
    predicted, measured = both_ways(subject, mode, batch, size, **settings)
    check_peak(predicted, measured)
    assert forward_peak(predicted) == pytest.approx(forward_peak(measured), rel=TOLERANCE, abs=2 * RANDOM_STATE)


@pytest.mark.parametrize(
    ("variant", "size"),
    [("s0", 96), pytest.param("s3", 64, marks=pytest.mark.long), pytest.param("s6", 64, marks=pytest.mark.long)],
)
def test_revbifpn_in_every_mode(variant: str, size: int) -> None:
    subject = WithoutStochasticDepth(f"revbifpn_{variant}")
    assert subject.modes == ("reversible", "exact", "stored")
    for mode in subject.modes:
        check(subject, mode, 2, size)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("s1", marks=pytest.mark.long),
        pytest.param("s2", marks=pytest.mark.long),
        "s4",
        pytest.param("s5", marks=pytest.mark.long),
    ],
)
def test_other_variants(variant: str) -> None:
    check(WithoutStochasticDepth(f"revbifpn_{variant}"), "reversible", 2, 64)


def test_a_random_state_for_each_edge_with_stochastic_depth_is_all_that_is_not_seen() -> None:
    subject = WithStochasticDepth("revbifpn_s0")
    predicted, measured = both_ways(subject, "reversible", 2, 64)
    drawing = [m for m in subject.model("reversible", (64, 64)).modules() if getattr(m, "drop_prob", 0)]
    assert len(drawing) > 50
    check_peak(predicted, measured, unseen=(len(drawing) + 2) * RANDOM_STATE)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "hrnet_w18", "resnet50"])
def test_timm_models_in_every_mode_that_they_have(name: str) -> None:
    subject = TimmSubject(name)
    # timm 1.0's HRNet has no checkpointing.
    assert subject.modes == (("stored",) if name == "hrnet_w18" else ("stored", "checkpointing"))
    for mode in subject.modes:
        check(subject, mode, 2, 64)


@pytest.mark.parametrize(("optimizer", "channels_last"), [("sgd", True), ("adamw", False)])
def test_with_optimizer_and_layout(optimizer: str, channels_last: bool) -> None:
    check(TimmSubject("revbifpn_s0"), "reversible", 4, 64, optimizer=optimizer, channels_last=channels_last)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="on this processor oneDNN does not compute in bfloat16"
)
def test_bf16_autocast() -> None:
    """Images enough that the peak is where activations are: with few, operators that hold more gradients come close to it."""
    predicted, measured = both_ways(TimmSubject("revbifpn_s0"), "exact", 8, 64, autocast=torch.bfloat16)
    assert predicted.precision == "bfloat16"
    assert measured.activations > 0.09 * measured.peak
    check_peak(predicted, measured)


def test_mask_rcnn_of_the_demo() -> None:
    pytest.importorskip("mmdet")
    subject = ConfigSubject.from_file(str(DEMO_CONFIG))
    predicted, measured = both_ways(subject, "reversible", 2, 128)
    assert measured.activations > 0.7 * measured.peak
    check_peak(predicted, measured)
