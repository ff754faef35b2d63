"""Every detection config builds; parameters and multiply-accumulates are the paper's; a training step of each kind runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.necks import FPN, HRFPN
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from revbifpn.memory.detection import detection_inputs, sum_of_losses
from revbifpn.models import VARIANTS

CONFIGS = Path(__file__).parents[3] / "configs"
FOLDERS = ("mask_rcnn", "faster_rcnn", "cascade_mask_rcnn", "retinanet", "fcos")
ALL = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.py"))
KINDS = (
    "mask-rcnn_revbifpn-s0_hrfpn_1x_coco",
    "mask-rcnn_revbifpn-s0_fpn_1x_coco",
    "cascade-mask-rcnn_revbifpn-s0_hrfpn_20e_coco",
    "retinanet_revbifpn-s0_hrfpn_1x_coco",
    "fcos_revbifpn-s0_hrfpn_1x_coco",
    "faster-rcnn_r50_revsilo_1x_coco",
    "retinanet_r50_revsilo_1x_coco",
)
PARAMETERS = {"s0": 22.19, "s1": 23.12, "s2": 26.50, "s3": 33.04, "s4": 55.52, "s5": 80.47, "s6": 130.15}
#: The RevBiFPN paper's tables of detectors, at 1280x800.
GMACS = {
    "mask_rcnn": {"s0": 188.2, "s1": 193.7, "s2": 210.5, "s3": 232.9, "s4": 304.1, "s5": 382.0, "s6": 518.5},
    "faster_rcnn": {"s3": 180.99, "s5": 328.91, "s6": 465.43},
}


def build(path: Path, **changes: Any) -> nn.Module:
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(changes)
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        detector: nn.Module = MODELS.build(cfg.model)
    return detector


def test_there_are_configs_for_every_variant_and_schedule() -> None:
    names = {path.stem for path in ALL}
    for family in ("mask-rcnn", "faster-rcnn"):
        for variant in VARIANTS:
            for rest in ("hrfpn_1x", "hrfpn_2x", "fpn_1x"):
                assert f"{family}_revbifpn-{variant}_{rest}_coco" in names
    for variant in ("s0", "s2", "s4"):
        for name in ("retinanet_{}_hrfpn_1x", "fcos_{}_hrfpn_1x", "cascade-mask-rcnn_{}_hrfpn_20e"):
            assert f"{name.format(f'revbifpn-{variant}')}_coco" in names
    assert {"retinanet_r50_revsilo_1x_coco", "faster-rcnn_r50_revsilo_1x_coco"} <= names
    assert "mask-rcnn_revbifpn-s0_hrfpn_amp-1x_coco" in names


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_is_what_its_name_says(path: Path) -> None:
    detector_name, backbone_name, neck_name, schedule, _ = path.stem.split("_")
    cfg = Config.fromfile(path)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert cfg.train_dataloader.dataset.data_root == "data/coco/"
    assert bool(cfg.train_dataloader.dataset.pipeline[1].get("with_mask")) == ("mask" in detector_name)
    epochs = {"1x": 12, "2x": 24, "20e": 20}[schedule.removeprefix("amp-")]
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.optim_wrapper.type == ("AmpOptimWrapper" if "amp" in schedule else "OptimWrapper")
    assert cfg.optim_wrapper.optimizer.lr == (0.02 if "rcnn" in detector_name else 0.01)

    detector = build(path)
    assert type(detector).__name__.lower() == detector_name.replace("-", "").replace("cascademask", "cascade")
    assert type(detector.neck).__name__ == {"hrfpn": "LeanHRFPN", "fpn": "LeanFPN", "revsilo": "RevSiloNeck"}[neck_name]
    if backbone_name != "r50":
        backbone: Any = detector.backbone
        assert backbone.variant is VARIANTS[backbone_name.removeprefix("revbifpn-")]
        assert list(cfg.model.neck.in_channels) == list(backbone.variant.neck_channels)


@pytest.mark.parametrize("name", PARAMETERS)
def test_mask_rcnns_parameters_are_the_papers(name: str) -> None:
    detector = build(CONFIGS / "mask_rcnn" / f"mask-rcnn_revbifpn-{name}_hrfpn_1x_coco.py")
    assert round(sum(p.numel() for p in detector.parameters()) / 1e6, 2) == PARAMETERS[name]


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, names in GMACS.items() for name in names])
def test_macs_are_the_papers(folder: str, name: str) -> None:
    """Counted as MMDetection counts: 1000 proposals, of which the mask head gets 100. Their tool counts norms too."""
    path = CONFIGS / folder / f"{folder.replace('_', '-')}_revbifpn-{name}_hrfpn_1x_coco.py"
    detector: Any = build(path, **{"model.neck.type": "HRFPN"}).eval()
    detector.backbone.reversible = False
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        levels = detector.extract_feat(torch.empty(1, 3, 800, 1280))
        detector.rpn_head(levels)
        detector.roi_head.bbox_head(torch.empty(1000, 256, 7, 7))
        if detector.roi_head.with_mask:
            detector.roi_head.mask_head(torch.empty(100, 256, 14, 14))
    assert counter.get_total_flops() / 2e9 == pytest.approx(GMACS[folder][name], rel=0.06)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py", (HRFPN, RPNHead, FCNMaskHead)),
        ("mask_rcnn/mask-rcnn_revbifpn-s0_fpn_1x_coco.py", (FPN, RPNHead, FCNMaskHead)),
    ],
)
def test_the_plain_parts_are_a_line_away(path: str, plain: tuple[type, ...]) -> None:
    keys = ("model.neck.type", "model.rpn_head.type", "model.roi_head.mask_head.type")
    lean = build(CONFIGS / path)
    detector: Any = build(CONFIGS / path, **dict(zip(keys, (kind.__name__ for kind in plain), strict=True)))
    assert (type(detector.neck), type(detector.rpn_head), type(detector.roi_head.mask_head)) == plain
    assert list(detector.state_dict()) == list(lean.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_of_each_kind_reaches_every_parameter(name: str) -> None:
    (path,) = (path for path in ALL if path.stem == name)
    cfg = Config.fromfile(path)
    cfg.model.backbone.pop("init_cfg", None)  # ResNet-50's would be downloaded
    if "rcnn" in cfg.model.get("train_cfg", {}):  # few regions, which are what takes the time
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    detector: Any = MODELS.build(cfg.model).train()
    batch = detection_inputs(2, (64, 96), 80)
    losses = detector(torch.randn(2, 3, 64, 96), batch["data_samples"], mode="loss")
    sum_of_losses(losses).backward()
    without = [
        key for key, p in detector.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not without
