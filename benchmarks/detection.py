"""What lean parts and frozen stages save of a detector's training step.

    python -m benchmarks.detection [--parts lean frozen] [--json FILE]

*lean*: the step of a Mask R-CNN as its config has it, against the same detector with MMDetection's own neck and heads; same
weights, same proposals. *frozen*: the step of a backbone by ``frozen_stages``. Times are taken on this machine, in turns;
memory is predicted for a GPU. A step is forward, loss, backward and SGD with momentum.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from benchmarks.common import describe, environment, time_side_by_side, update_json
from benchmarks.cost_tables import detector_table
from revbifpn.integrations.mmdet import RevBiFPNBackbone
from revbifpn.memory import profile_training
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.detection import detection_inputs, sum_of_losses, without_values
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.models import VARIANTS

CONFIGS = Path(__file__).parents[1] / "configs"
#: What makes a config's neck and heads MMDetection's own.
PLAIN = {"model.neck.type": "HRFPN", "model.rpn_head.type": "RPNHead", "model.roi_head.mask_head.type": "FCNMaskHead"}
GPU = Settings(optimizer="sgd", device="cuda")
BATCH = 2


def sgd_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step with SGD, whose learning rate is so small that the weights stay as they are."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-12, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def mask_rcnn(variant: str, changes: dict[str, Any]) -> Config:
    """A variant's config, changed."""
    cfg = Config.fromfile(CONFIGS / "mask_rcnn" / f"mask-rcnn_revbifpn-{variant}_hrfpn_1x_coco.py")
    cfg.merge_from_dict(changes)
    return cfg


def detector_step(cfg: Config, state: dict[str, Tensor] | None, side: int) -> tuple[nn.Module, Callable[[], None]]:
    """A detector, with weights if they are given, and its step on two square images."""
    init_default_scope("mmdet")
    detector: nn.Module = MODELS.build(cfg.model).train()
    if state is not None:
        detector.load_state_dict(state)
    samples = detection_inputs(BATCH, (side, side), 80)["data_samples"]
    images = torch.randn(BATCH, 3, side, side)

    def loss() -> Tensor:
        with without_values(detector):
            return sum_of_losses(detector(images, samples, mode="loss"))

    return detector, sgd_step(detector, loss)


def lean(variant: str, side: int, repeats: int) -> dict[str, Any]:
    """Lean parts against MMDetection's."""
    cfgs = {"lean": mask_rcnn(variant, {}), "MMDetection's": mask_rcnn(variant, PLAIN)}
    plain, plain_step = detector_step(cfgs["MMDetection's"], None, side)
    _, lean_step = detector_step(cfgs["lean"], plain.state_dict(), side)
    seconds = time_side_by_side({"lean": lean_step, "MMDetection's": plain_step}, repeats)
    rows = []
    for name, cfg in cfgs.items():
        report = profile_subject(ConfigSubject(cfg, name), "reversible", BATCH, (side, side), GPU)
        rows.append({"parts": name, "seconds": seconds[name], "peak": report.peak})
    ours, theirs = (statistics.median(seconds[name]) for name in cfgs)
    return {"variant": variant, "batch": BATCH, "side": side, "time_ratio": ours / theirs, "rows": rows}


def frozen(variant: str, side: int, repeats: int) -> dict[str, Any]:
    """A backbone's step by the number of frozen stages."""
    images = torch.randn(BATCH, 3, side, side)
    weights = RevBiFPNBackbone(variant).state_dict()
    steps: dict[int, Callable[[], None]] = {}
    peaks: dict[int, int] = {}
    for stages in range(VARIANTS[variant].num_stages + 1):
        backbone = RevBiFPNBackbone(variant, frozen_stages=stages).train()
        backbone.load_state_dict(weights)
        peaks[stages] = profile_training(backbone, [images.to("meta")], device="cuda", optimizer="sgd").peak
        steps[stages] = sgd_step(backbone, partial(sum_of_means, backbone, images))
    seconds = time_side_by_side(steps, repeats)
    rows = [{"frozen_stages": stages, "seconds": seconds[stages], "peak": peaks[stages]} for stages in steps]
    return {"variant": variant, "batch": BATCH, "side": side, "rows": rows}


def sum_of_means(backbone: nn.Module, images: Tensor) -> Tensor:
    """A loss that reaches every level."""
    return torch.stack([level.mean() for level in backbone(images)]).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("lean", "frozen"), default=["lean", "frozen"])
    parser.add_argument("--lean-variant", default="s3", choices=VARIANTS)
    parser.add_argument("--frozen-variant", default="s0", choices=VARIANTS)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those that are there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    env = environment()
    print(describe(env))
    for part in args.parts:
        print(f"\n{part}")
        variant = args.lean_variant if part == "lean" else args.frozen_variant
        result = {"lean": lean, "frozen": frozen}[part](variant, args.side, args.repeats)
        print(detector_table(result))
        if args.json is not None:
            update_json(args.json, {part: {"environment": env, **result}})


if __name__ == "__main__":
    main()
