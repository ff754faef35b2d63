"""Backbone and necks of the configs, exported to ONNX, give in onnxruntime what they give here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from tests.networks import SMALL

CONFIGS = Path(__file__).parents[3] / "configs/mask_rcnn"


class Features(nn.Module):
    """(N, 3, H, W) -> the levels of both necks on one backbone, finest first: an export takes half a minute."""

    def __init__(self, backbone: nn.Module, *necks: nn.Module) -> None:
        super().__init__()
        self.backbone, self.necks = backbone, nn.ModuleList(necks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = self.backbone(image)
        return tuple(out for neck in self.necks for out in neck(levels))


def test_backbone_and_necks_in_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hrfpn, fpn = (Config.fromfile(CONFIGS / f"mask-rcnn_revbifpn-s0_{neck}_1x_coco.py") for neck in ("hrfpn", "fpn"))
    init_default_scope("mmdet")
    assert (hrfpn.model.neck.type, fpn.model.neck.type) == ("LeanHRFPN", "LeanFPN")
    hrfpn.model.backbone.variant = SMALL
    features = Features(*(MODELS.build(part) for part in (hrfpn.model.backbone, hrfpn.model.neck, fpn.model.neck)))
    features.train()(torch.randn(2, 3, 64, 96))  # running statistics that are not those of a fresh network
    features.eval()
    dynamic: Any = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    path = tmp_path / "features.onnx"
    names = [f"{neck}{i}" for neck in ("hrfpn", "fpn") for i in range(5)]
    example = (torch.randn(2, 3, 64, 96),)
    torch.onnx.export(features, example, path, input_names=["image"], output_names=names, dynamic_shapes=dynamic, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = torch.randn(batch, 3, 64, 96)
        with torch.no_grad():
            expected = features(image)
        found = session.run(names, {"image": image.numpy()})
        assert len(found) == len(expected) == 10
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            # float32 sums in another order: some 1e-6 of the values, with room for cancellation
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
