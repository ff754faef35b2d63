"""The MMDetection backbone: options, checkpoints, and what it hands to mmcv's operators."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign, batched_nms, nms
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from revbifpn import CheckpointError, RevBiFPNPyramid, convert_checkpoint, set_reversible
from revbifpn.integrations.mmdet import RevBiFPNBackbone
from revbifpn.reversible.memory_format import MemoryFormat
from tests.oracle import image, reference_state_dict

CONFIGS = Path(__file__).parents[2] / "configs"
FORMATS = (torch.contiguous_format, torch.channels_last)
DETECTOR_PARAMETERS = {"s0": 22.19, "s1": 23.12, "s2": 26.50, "s3": 33.04, "s4": 55.52, "s5": 80.47, "s6": 130.15}


def grads(module: nn.Module) -> list[bool]:
    return [p.grad is not None for p in module.parameters()]


def test_registered_at_the_root_registry() -> None:
    """So MMDetection, MMSegmentation and the others find it through their parent registry."""
    from mmdet.registry import MODELS as DET_MODELS

    assert MODELS.get("RevBiFPN") is RevBiFPNBackbone
    init_default_scope("mmdet")
    assert isinstance(DET_MODELS.build(dict(type="RevBiFPN", variant="s0")), RevBiFPNBackbone)


@pytest.mark.parametrize("name", DETECTOR_PARAMETERS)
def test_configs_build_detectors_with_the_published_parameter_counts(name: str) -> None:
    from mmdet.registry import MODELS as DET_MODELS

    init_default_scope("mmdet")
    cfg = Config.fromfile(CONFIGS / "mask_rcnn" / f"mask-rcnn_revbifpn-{name}_hrfpn_1x_coco.py")
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert cfg.train_dataloader.dataset.data_root == "data/coco/"
    with torch.device("meta"):
        detector = DET_MODELS.build(cfg.model)
    count = sum(p.numel() for p in detector.parameters())
    assert round(count / 1e6, 2) == DETECTOR_PARAMETERS[name]
    if name == "s0":
        assert count == 22_194_264


@pytest.mark.parametrize("images", FORMATS)
@pytest.mark.parametrize("memory_format", ["auto", "keep", "channels_last", "contiguous"])
def test_levels_are_contiguous_and_equal_the_pyramids(memory_format: MemoryFormat, images: torch.memory_format) -> None:
    torch.manual_seed(0)
    backbone = RevBiFPNBackbone("s0", memory_format=memory_format).eval()
    pyramid = RevBiFPNPyramid("s0", memory_format="contiguous").eval()
    pyramid.load_state_dict(backbone.state_dict())
    x = image(2, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(backbone(x.contiguous(memory_format=images)), pyramid(x), strict=True):
            assert ours.is_contiguous()
            # Other memory format, other order of sums in float32.
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


ROIS = torch.tensor([[0, 3.0, 5.0, 60.0, 40.0], [1, 10.0, 2.0, 33.0, 63.0], [1, 0.0, 0.0, 95.0, 63.0]])


@pytest.mark.parametrize("images", FORMATS)
def test_roi_align_on_the_backbones_outputs_equals_torchvisions(images: torch.memory_format) -> None:
    """mmcv's CPU RoIAlign is silently wrong on channels_last features; both values and gradients are held here."""
    torch.manual_seed(0)
    backbone = RevBiFPNBackbone("s0").train()
    levels = backbone(image(2, 64, 96).contiguous(memory_format=images))
    for level, stride in zip(levels, (4, 8, 16, 32), strict=True):
        ours, theirs = level.detach().requires_grad_(), level.detach().clone().requires_grad_()
        a = RoIAlign(7, 1 / stride, sampling_ratio=2, aligned=True)(ours, ROIS)
        b = torchvision.ops.roi_align(theirs, ROIS, 7, 1 / stride, sampling_ratio=2, aligned=True)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        # Heads hand gradients back in any memory format.
        grad = torch.randn_like(a).contiguous(memory_format=torch.channels_last)
        a.backward(grad)
        b.backward(grad)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.xfail(reason="mmcv's CPU RoIAlign reads channels_last features as if they were contiguous", strict=True)
def test_mmcvs_roi_align_takes_channels_last_features() -> None:
    """The reason why the backbone hands its levels over contiguous. When this passes, mmcv has mended it."""
    torch.manual_seed(0)
    features = torch.randn(2, 8, 16, 24)
    align = RoIAlign(7, 1 / 4, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(align(features.contiguous(memory_format=torch.channels_last), ROIS), align(features, ROIS))


def test_nms_on_strided_boxes_equals_torchvisions() -> None:
    """Another operator of the kind: boxes and scores that are views of a wider tensor."""
    torch.manual_seed(0)
    wide = torch.rand(200, 10) * 50
    wide[:, 2:4] += wide[:, :2]
    boxes, scores = wide[:, :4], wide[:, 5]
    assert not boxes.is_contiguous()
    assert not scores.is_contiguous()
    _, ours = nms(boxes, scores, 0.5)
    assert torch.equal(ours, torchvision.ops.nms(boxes, scores, 0.5))
    labels = torch.randint(0, 3, (200,))
    _, ours = batched_nms(boxes, scores, labels, dict(type="nms", iou_threshold=0.5))
    assert torch.equal(ours, torchvision.ops.batched_nms(boxes, scores, labels, 0.5))


@pytest.mark.parametrize("out_indices", [(1, 2, 3), (3, 1), (0,), (3,)])
@pytest.mark.parametrize("reversible", [True, False])
def test_levels_that_are_left_out_leave_no_idle_parameters(out_indices: tuple[int, ...], reversible: bool) -> None:
    torch.manual_seed(0)
    whole = RevBiFPNBackbone("s0", reversible=reversible).eval()
    backbone = RevBiFPNBackbone("s0", out_indices=out_indices, reversible=reversible).eval()
    state = whole.state_dict()
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
    x = image(2, 64, 64)
    with torch.no_grad():
        wanted = whole(x)
        assert all(torch.equal(level, wanted[i]) for i, level in zip(out_indices, backbone(x), strict=True))
    sum(level.square().mean() for level in backbone.train()(x)).backward()
    assert all(grads(backbone))
    # Biases of projections that feed a norm are the only parameters whose true gradient is zero.
    idle = [name for name, p in backbone.named_parameters() if not p.grad.any() and not name.endswith("norm.bias")]
    assert not idle


@pytest.mark.parametrize("layout", ["own", "published"])
def test_checkpoints_of_the_whole_model_load_into_one_without_some_levels(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_state_dict("revbifpn_s0")
    own = convert_checkpoint(reference)
    torch.save(reference if layout == "published" else own, tmp_path / "s0.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "s0.pth"))
    backbone = RevBiFPNBackbone("s0", out_indices=(1, 2, 3), init_cfg=init_cfg)
    assert len(list(backbone.neck[0].parameters())) == 0
    messages: list[str] = []
    monkeypatch.setattr("revbifpn.integrations.mmdet.backbone.print_log", lambda message, **_: messages.append(message))
    backbone.init_weights()
    state = backbone.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in state.items())
    assert f"left out {len(own) - len(state)} (body, head, neck)" in messages[0]


@pytest.mark.parametrize("frozen_stages", [0, 1])
def test_more_image_channels_take_rgb_checkpoints(tmp_path: Path, frozen_stages: int) -> None:
    path = tmp_path / "s0.pth"
    torch.save(RevBiFPNPyramid("s0").state_dict(), path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    backbone = RevBiFPNBackbone("s0", in_chans=6, frozen_stages=frozen_stages, init_cfg=init_cfg).train()
    backbone.init_weights()
    sum(level.mean() for level in backbone(torch.randn(2, 6, 64, 64))).backward()
    assert (backbone.stem.weight.grad is None) == (frozen_stages == 1)
    rgb = RevBiFPNBackbone("s0", init_cfg=init_cfg).eval()
    rgb.init_weights()
    x = torch.randn(1, 3, 64, 64)
    backbone = RevBiFPNBackbone("s0", in_chans=6, init_cfg=init_cfg).eval()
    backbone.init_weights()
    with torch.no_grad():
        for a, b in zip(backbone(x.repeat(1, 2, 1, 1)), rgb(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 5])
def test_frozen_stages_get_no_gradient_and_move_no_statistics(frozen_stages: int) -> None:
    backbone = RevBiFPNBackbone("s0", frozen_stages=frozen_stages).train()
    sum(level.mean() for level in backbone(image(2, 64, 64))).backward()
    for stage in range(5):
        for layer in backbone.stage_layers(stage):
            frozen = stage < frozen_stages
            assert not any(grads(layer)) if frozen else all(grads(layer))
            moved = {int(m.num_batches_tracked) for m in layer.modules() if isinstance(m, nn.BatchNorm2d)}
            assert moved == ({0} if frozen else {1})
    assert all(grads(backbone.neck))


def test_norm_eval_survives_train() -> None:
    backbone = RevBiFPNBackbone("s0", norm_eval=True).train()
    assert backbone.training
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    sum(level.mean() for level in backbone(image(2, 64, 64))).backward()
    assert {int(m.num_batches_tracked) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {0}
    assert all(grads(backbone))


def test_modes_are_options() -> None:
    assert not RevBiFPNBackbone("s0", reversible=False).body.reversible
    assert RevBiFPNBackbone("s0", exact=True).body.exact_bits == 13
    assert {
        m.drop_prob for m in RevBiFPNBackbone("s0", drop_path_rate=0.5).stage_layers(4)[0].modules() if hasattr(m, "drop_prob")
    } == {0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="s9"), "unknown RevBiFPN variant 's9': choose one of s0"),
        (dict(out_indices=(0, 4)), r"out_indices must be some of 0..3 .*, got \(0, 4\)"),
        (dict(out_indices=()), r"out_indices must be some of 0..3 .*, got \(\)"),
        (dict(out_indices=(1, 1)), r"out_indices must be some of 0..3 .*, each once, got \(1, 1\)"),
        (dict(out_indices=4), "out_indices must be some of 0..3 .*, each once, got 4"),
        (dict(out_indices=[0, True]), r"out_indices must be some of 0..3 .*, each once, got \[0, True\]"),
        (dict(frozen_stages="1"), r"frozen_stages must be in -1..5 .*, got '1'"),
        (dict(with_cp=True, reversible=False), "with_cp=True asks .*, reversible=False to keep them: leave one out"),
        (dict(in_chans=0), "in_chans must be an integer >= 1, got 0"),
        (dict(drop_path_rate=1.5), "drop_path_rate must be a number with 0 <= drop_path_rate < 1, got 1.5"),
        (dict(frozen_stages=6), r"frozen_stages must be in -1..5 \(RevBiFPN-s0 has 5 stages\), got 6"),
        (dict(frozen_stages=-2), r"frozen_stages must be in -1..5 .*, got -2"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RevBiFPNBackbone(**options)  # type: ignore[arg-type]


def test_an_image_without_preprocessing_is_refused() -> None:
    with pytest.raises(ValueError, match="image must hold floating-point numbers, .* got torch.uint8"):
        RevBiFPNBackbone("s0")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("layout", ["published", "own", "detector"])
def test_pretrained_checkpoint_loads_and_says_what_was_left_out(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_state_dict("revbifpn_s0")
    own = convert_checkpoint(reference)
    content = {"published": reference, "own": own, "detector": {f"backbone.{k}": v for k, v in own.items() if k[0] != "h"}}
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": content[layout]}, path)
    backbone = RevBiFPNBackbone("s0", out_indices=(0, 1, 2), init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    messages: list[str] = []
    monkeypatch.setattr("revbifpn.integrations.mmdet.backbone.print_log", lambda message, **_: messages.append(message))
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, own[key]), key
    assert f"loaded {len(backbone.state_dict())} tensors" in messages[0]
    assert ("(neck)" if layout == "detector" else "(head, neck)") in messages[0]


def test_pretrained_checkpoint_of_another_variant_is_refused(tmp_path: Path) -> None:
    torch.save(RevBiFPNPyramid("s1").state_dict(), tmp_path / "s1.pth")
    backbone = RevBiFPNBackbone("s0", init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "s1.pth")))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match="checkpoint of RevBiFPN-s1, the model is RevBiFPN-s0"):
        backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_options_of_pretrained(tmp_path: Path) -> None:
    """Averaged or raw weights, a prefix, and values that are not finite."""
    raw, averaged = (RevBiFPNPyramid("s0").state_dict() for _ in range(2))
    raw["neck.0.project.norm.bias"][3] = float("inf")
    path = tmp_path / "timm.pth"
    content = {"state_dict": raw, "state_dict_ema": {f"model.backbone.{key}": value for key, value in averaged.items()}}
    torch.save(content, path)

    def init(**options: object) -> dict[str, torch.Tensor]:
        backbone = RevBiFPNBackbone("s0", init_cfg=dict(type="Pretrained", checkpoint=str(path), **options))
        backbone.init_weights()
        return backbone.state_dict()

    assert all(torch.equal(value, averaged[key]) for key, value in init(prefix="model.backbone").items())
    with pytest.raises(CheckpointError, match="timm.pth has values that are NaN or infinite, in 1 tensors: neck.0.project"):
        init(ema=False)
    assert all(torch.equal(value, raw[key]) for key, value in init(ema=False, allow_non_finite=True).items())
    with pytest.raises(ValueError, match="init_cfg of type 'Pretrained' has no emma, but allow_non_finite, ema,"):
        init(emma=False)


def test_missing_pretrained_checkpoint_is_named() -> None:
    backbone = RevBiFPNBackbone("s0", init_cfg=dict(type="Pretrained", checkpoint="nowhere.pth"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        backbone.init_weights()


def test_other_initialisers_of_mmengine_work() -> None:
    backbone = RevBiFPNBackbone("s0", init_cfg=dict(type="Constant", layer="Conv2d", val=0.5))
    backbone.init_weights()
    assert (backbone.neck[0].project.conv.weight == 0.5).all()


@pytest.mark.parametrize("bf16", [False, True])
def test_exact_mode_is_bit_identical_in_the_backbone(bf16: bool) -> None:
    torch.manual_seed(0)
    backbone = RevBiFPNBackbone("s0", exact=True, drop_path_rate=0.1).train()
    stored = set_reversible(copy.deepcopy(backbone), False)
    found = []
    for model in (backbone, stored):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = sum(level.float().square().mean() for level in model(image(2, 64, 96)))
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_coco_configs_use_a_coco_folder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MMDetection's layout at data/coco, nothing else to change: images are found, resized and padded for the backbone."""
    from mmdet.registry import DATASETS
    from mmdet.registry import MODELS as DET_MODELS
    from mmengine.dataset import pseudo_collate
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    coco = tmp_path / "data" / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "train2017").mkdir()
    Image.new("RGB", (200, 120), "green").save(coco / "train2017" / "000000000001.jpg")
    annotation = {"id": 1, "image_id": 1, "category_id": 18, "bbox": [10, 10, 60, 40], "area": 2400, "iscrowd": 0,
                  "segmentation": [[10, 10, 70, 10, 70, 50, 10, 50]]}  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "000000000001.jpg", "width": 200, "height": 120}],
        "annotations": [annotation],
        "categories": [{"id": 18, "name": "dog"}],
    }
    (coco / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    init_default_scope("mmdet")
    cfg = Config.fromfile(CONFIGS / "mask_rcnn" / "mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py")
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 1
    assert len(dataset.metainfo["classes"]) == cfg.model.roi_head.bbox_head.num_classes == 80
    preprocessor = DET_MODELS.build(cfg.model.data_preprocessor)
    batch = preprocessor(pseudo_collate([dataset[0]]), training=True)
    assert batch["inputs"].shape == (1, 3, 800, 1344)  # 1333x800, padded to multiples of 32
    assert batch["data_samples"][0].gt_instances.masks.width == 1344


def test_pretrained_loads_what_the_runner_saved(tmp_path: Path) -> None:
    """A detector's checkpoint of MMEngine holds more than weights: its message hub, for one."""
    from mmengine.logging import HistoryBuffer

    trained = RevBiFPNBackbone("s0")
    content = {
        "meta": {"epoch": 1},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0], [1])}},
        "state_dict": {f"backbone.{key}": value for key, value in trained.state_dict().items()},
    }
    torch.save(content, tmp_path / "epoch_1.pth")
    backbone = RevBiFPNBackbone("s0", init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "epoch_1.pth")))
    backbone.init_weights()
    torch.testing.assert_close(backbone.state_dict(), trained.state_dict(), rtol=0, atol=0)
