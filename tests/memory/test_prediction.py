"""Predicted memory equals what the CPU allocator measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from revbifpn.memory.sources import ConfigSubject, Settings, Subject, TimmSubject, profile_subject

#: What a prediction may be off by. Most are exact to the byte; the rest is scratch memory inside oneDNN's convolutions.
TOLERANCE = 0.03

DEMO_CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"


#: Not seen by a tracker, since they are made below PyTorch's dispatcher: the random states (5 kB on CPU) that the engine
#: keeps for each edge with stochastic depth.
UNSEEN = 1_000_000


def check(subject: Subject, mode: str, batch: int, size: int, **settings: object) -> None:
    predicted, measured = (
        profile_subject(subject, mode, batch, (size, size), Settings(method=method, **settings))  # type: ignore[arg-type]
        for method in ("predict", "measure")
    )
    assert predicted.peak == pytest.approx(measured.peak, rel=TOLERANCE)
    # What grows with the batch may be a small part of a large model at a small size.
    assert predicted.activations == pytest.approx(measured.activations, rel=TOLERANCE, abs=UNSEEN)
    for report in (predicted, measured):
        assert sum(report.categories.values()) == report.peak


@pytest.mark.parametrize(
    ("variant", "size"), [("s0", 96), ("s1", 64), ("s2", 64), ("s3", 64), ("s4", 32), ("s5", 32), ("s6", 32)]
)
def test_revbifpn_in_every_mode(variant: str, size: int) -> None:
    subject = TimmSubject(f"revbifpn_{variant}")
    assert subject.modes == ("reversible", "exact", "stored")
    for mode in subject.modes:
        check(subject, mode, 2, size, optimizer=None)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "hrnet_w18", "resnet50"])
def test_timm_models_in_every_mode_that_they_have(name: str) -> None:
    subject = TimmSubject(name)
    # timm 1.0's HRNet has no checkpointing.
    assert subject.modes == (("stored",) if name == "hrnet_w18" else ("stored", "checkpointing"))
    for mode in subject.modes:
        check(subject, mode, 2, 64, optimizer=None)


@pytest.mark.parametrize(("optimizer", "channels_last"), [("sgd", True), ("adamw", False)])
def test_with_optimizer_and_layout(optimizer: str, channels_last: bool) -> None:
    check(TimmSubject("revbifpn_s0"), "reversible", 4, 64, optimizer=optimizer, channels_last=channels_last)


def test_bf16_autocast() -> None:
    """The whole step alone: where two operators have nearly the same peak, another one may win."""
    subject = TimmSubject("revbifpn_s0")
    predicted, measured = (
        profile_subject(subject, "exact", 2, (64, 64), Settings(None, method=method, autocast=torch.bfloat16))
        for method in ("predict", "measure")
    )
    assert predicted.precision == "bfloat16"
    assert predicted.peak == pytest.approx(measured.peak, rel=TOLERANCE)


def test_mask_rcnn_of_the_demo() -> None:
    pytest.importorskip("mmdet")
    check(ConfigSubject(str(DEMO_CONFIG)), "reversible", 2, 128, optimizer=None)
