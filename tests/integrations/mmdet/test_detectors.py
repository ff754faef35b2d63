"""Whole detectors with lean parts against the same with MMDetection's: losses, all gradients, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from revbifpn.integrations.mmdet import recomputed
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.detection import detection_inputs, sum_of_losses, without_values
from revbifpn.memory.steps import Settings, profile_subject

CONFIGS = Path(__file__).parents[3] / "configs"
PLAIN = {
    "hrfpn": {"model.neck.type": "HRFPN", "model.rpn_head.type": "RPNHead", "model.roi_head.mask_head.type": "FCNMaskHead"},
    "fpn": {"model.neck.type": "FPN", "model.rpn_head.type": "RPNHead", "model.roi_head.mask_head.type": "FCNMaskHead"},
}


def step(cfg: Config, state: dict[str, Tensor] | None) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A detector, its losses and its gradients in one step on a made-up batch.

    In float64: with float32's rounding a ReLU's input near 0 now and then changes its sign, and a gradient by 1e-4. Proposals
    are drawn, not taken from the network: where two of its scores differ by rounding alone, either may come first.
    """
    init_default_scope("mmdet")
    torch.manual_seed(0)
    detector: Any = MODELS.build(cfg.model).double().train()
    if state is not None:
        detector.load_state_dict(state)
    batch = detection_inputs(2, (96, 128), 80)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(2)  # samplers
    with without_values(detector):
        losses = detector(images, batch["data_samples"], mode="loss")
    sum_of_losses(losses).backward()
    flat = {key: sum_of_losses({key: value}).detach() for key, value in losses.items() if "loss" in key}
    return detector, flat, {key: p.grad for key, p in detector.named_parameters()}


@pytest.mark.parametrize("neck", PLAIN)
def test_losses_and_all_gradients_are_mmdetections(neck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputed, "PART_ELEMENTS", 256 * 24 * 32)  # heads run in parts, as with large images
    cfg = Config.fromfile(CONFIGS / "mask_rcnn" / f"mask-rcnn_revbifpn-s0_{neck}_1x_coco.py")
    cfg.model.train_cfg.rcnn.sampler.num = 64
    cfg.model.train_cfg.rpn_proposal.max_per_img = 100
    plain_cfg = cfg.copy()
    plain_cfg.merge_from_dict(PLAIN[neck])
    plain, their_losses, their_grads = step(plain_cfg, None)
    lean, our_losses, our_grads = step(cfg, plain.state_dict())
    assert type(lean.neck) is not type(plain.neck)
    assert our_losses.keys() == their_losses.keys()
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"} <= our_losses.keys()
    for key, loss in their_losses.items():
        torch.testing.assert_close(our_losses[key], loss, rtol=1e-6, atol=0)  # MMDetection sums some of them in float32
    # Biases before a norm have a gradient of 0 and hold rounding alone.
    floor = 1e-10 * max(float(grad.norm()) for grad in their_grads.values())
    for key, grad in their_grads.items():
        assert float((our_grads[key] - grad).norm()) <= 1e-8 * float(grad.norm()) + floor, key


@pytest.mark.parametrize(
    ("config", "batch", "most"),
    [
        ("mask_rcnn/mask-rcnn_revbifpn-s3_hrfpn_1x_coco.py", 2, 1.25e9),  # with MMDetection's parts 3.03
        ("mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py", 2, 1.05e9),  # 2.39
        ("faster_rcnn/faster-rcnn_revbifpn-s3_hrfpn_1x_coco.py", 1, 0.65e9),  # 1.08
    ],
)
def test_memory_of_a_whole_step(config: str, batch: int, most: float) -> None:
    """Predicted for a GPU at 800x1344: float32, SGD with its state."""
    subject = ConfigSubject.from_file(str(CONFIGS / config))
    report = profile_subject(subject, "reversible", batch, (800, 1344), Settings(device="cuda"))
    assert report.optimizer == "sgd"
    assert report.peak <= most
