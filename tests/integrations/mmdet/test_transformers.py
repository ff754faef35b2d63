"""Necks that are no pyramids: MMDetection's ChannelMapper for DETR and Deformable DETR, and ViTDet's kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from revbifpn.integrations.mmdet import RevBiFPNBackbone
from revbifpn.memory.detection import detection_inputs, sum_of_losses
from revbifpn.models import VARIANTS

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "detr").glob("*.py"))


def build(path: Path) -> Any:
    """With fewer and narrower layers behind the neck, which are not what is tested."""
    cfg = Config.fromfile(path)
    for part in (cfg.model.encoder, cfg.model.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg.feedforward_channels = 64
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    return detector


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_levels_fit_the_channel_mapper(path: Path) -> None:
    cfg = Config.fromfile(path)
    variant, levels = VARIANTS[cfg.model.backbone.variant], cfg.model.backbone.out_indices
    assert list(cfg.model.neck.in_channels) == [variant.neck_channels[i] for i in levels]
    assert cfg.model.neck.type == "ChannelMapper"
    assert cfg.model.data_preprocessor.pad_size_divisor == 32


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_training_step_reaches_the_whole_backbone(path: Path) -> None:
    detector = build(path).train()
    batch = detection_inputs(2, (96, 128), 80)
    losses = detector(torch.randn(2, 3, 96, 128), batch["data_samples"], mode="loss")
    total = sum_of_losses(losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.backbone.parameters())
    assert all(p.grad is not None for p in detector.neck.parameters())


class SimplePyramid(nn.Module):
    """ViTDet's neck (Li et al. 2022, "Exploring plain vision transformer backbones for object detection", section 3): a
    plain transformer has one map, of stride 16; strides 4, 8 and 32 are made of it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(in_channels, in_channels, 2, 2) for _ in range(3)]
        self.scales = nn.ModuleList([nn.Sequential(up[0], nn.GELU(), up[1]), up[2], nn.Identity(), nn.MaxPool2d(2)])
        self.laterals = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(4))

    def forward(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        (level,) = inputs
        return [lateral(scale(level)) for lateral, scale in zip(self.laterals, self.scales, strict=True)]


def test_one_level_serves_a_neck_that_makes_its_own_pyramid() -> None:
    """Where a config has such a neck, ``out_indices=(2,)`` hands it the one map of stride 16 that it wants.

    There is no more to gain: the levels that it would make are those that the backbone has already.
    """
    torch.manual_seed(0)
    backbone = RevBiFPNBackbone("s0", out_indices=(2,)).train()
    neck = SimplePyramid(VARIANTS["s0"].neck_channels[2], 32)
    levels = neck(backbone(torch.randn(2, 3, 64, 96)))
    assert [tuple(level.shape) for level in levels] == [(2, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None for p in (*backbone.parameters(), *neck.parameters()))
