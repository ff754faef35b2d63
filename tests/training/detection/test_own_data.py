"""``--data FOLDER``: what it writes into a detector's config, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from revbifpn.datasets.image_folders import DataError
from revbifpn.models.published_weights import PUBLISHED
from revbifpn.training.checkpoints import resume_from
from revbifpn.training.checks import check_first_weights
from revbifpn.training.config import load_config, set_from_scratch
from revbifpn.training.detection.checkpoint import DetectorCheckpoint
from revbifpn.training.detection.own_data import OwnData, use_for_testing, use_for_training
from revbifpn.training.errors import ConfigError
from tests.conftest import ROOT, RunTool
from tests.datasets import coco
from tests.training.detection.conftest import FINETUNE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        coco.write(tmp_path / "data", split, coco.content(split))
    return tmp_path / "data"


def spoil(folder: Path, split: str, **changes: Any) -> None:
    """Change the first annotation of a split."""
    content = coco.content(split)
    content["annotations"][0].update(changes)
    coco.write(folder, split, content)


def config(tmp_path: Path, name: str = FINETUNE.name) -> Config:
    path = next((ROOT / "configs").rglob(name))
    return load_config(path, work_dir=tmp_path / "work")


CONFIGS = (
    FINETUNE.name,
    "mask-rcnn_revbifpn-s2_finetune.py",
    "faster-rcnn_revbifpn-s0_finetune.py",
    "cascade-mask-rcnn_revbifpn-s0_hrfpn_20e_coco.py",
    "retinanet_revbifpn-s0_hrfpn_1x_coco.py",
    "fcos_revbifpn-s0_hrfpn_1x_coco.py",
)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_takes_the_files_as_they_are(name: str, masks: bool, folder: Path, tmp_path: Path) -> None:
    """Classes and their number, masks where files and detector have them, data, evaluator; a loss of all of it is finite."""
    for split in ("train", "val"):
        coco.write(folder, split, coco.content(split, masks))
    cfg = config(tmp_path, name)
    use_for_training(cfg, OwnData(folder))
    masks &= "mask" in name
    init_default_scope("mmdet")
    with torch.device("meta"):
        detector: Any = MODELS.build(cfg.model)
    heads = {name: module for name, module in detector.named_modules() if "bbox_head" in name or "mask_head" in name}
    assert {head.num_classes for head in heads.values() if hasattr(head, "num_classes")} == {2}
    if hasattr(detector, "roi_head"):
        assert detector.roi_head.with_mask == masks
    for loader, split in (("train", "train"), ("val", "val"), ("test", "val")):
        dataset: Any = DATASETS.build(cfg[f"{loader}_dataloader"].dataset)
        assert dataset.metainfo["classes"] == ("cat", "dog")
        assert len(dataset.metainfo["palette"]) == 2
        sample = dataset[0]["data_samples"]
        assert Path(sample.img_path) == folder / f"images/{split}0.png"
        assert sample.gt_instances.labels.tolist() == [0, 1]
        assert ("masks" in sample.gt_instances) == masks
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator == dict(
            type="CocoMetric", ann_file=str(folder / "val.json"), metric=["bbox", "segm"] if masks else ["bbox"]
        )
    assert not (tmp_path / "work").exists()
    Config(cfg.to_dict()).dump(tmp_path / "dumped.py")  # as MMEngine's Runner does
    assert Config.fromfile(tmp_path / "dumped.py").model == cfg.model


def test_what_is_at_fault_is_listed_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    spoil(folder, "train", bbox=[50, 10, 30, 10])
    (folder / "images/val1.png").unlink()
    with pytest.raises(DataError) as error:
        use_for_training(config(tmp_path), OwnData(folder))
    assert str(error.value) == (
        "the annotation files have 2 faults; --drop-bad goes on without 1 image and 2 annotations:\n"
        f"  {folder}/train.json: annotation 10 has a box outside its image of 60 x 40: bbox [50, 10, 30, 10] (x, y, width, "
        f"height)\n  {folder}/val.json: image 21 is missing: {folder}/images/val1.png does not exist"
    )
    assert not (tmp_path / "work").exists()


def test_drop_bad_goes_on_with_copies(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder, "train", bbox=[50, 10, 30, 10])
    before = (folder / "train.json").read_bytes()
    cfg = config(tmp_path)
    use_for_training(cfg, OwnData(folder, drop_bad=True))
    assert "1 fault; going on without 0 images and 1 annotation, in copies of the files:" in capsys.readouterr().err
    assert cfg.train_dataloader.dataset.ann_file == str(tmp_path / "work/annotations/train.json")
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file == str(folder / "val.json")  # is as it should be
    kept = json.loads((tmp_path / "work/annotations/train.json").read_text())["annotations"]
    assert [a["id"] for a in kept] == [11, 12]
    assert (folder / "train.json").read_bytes() == before


def test_train_and_val_that_disagree(folder: Path, tmp_path: Path) -> None:
    content = coco.content("val")
    content["categories"].reverse()
    coco.write(folder, "val", content)
    with pytest.raises(
        DataError, match=r"val.json: list of categories has another order than that of .*train.json \(cat, dog\)"
    ):
        use_for_training(config(tmp_path), OwnData(folder))
    cfg = config(tmp_path)
    use_for_training(cfg, OwnData(folder, drop_bad=True))
    init_default_scope("mmdet")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset: Any = DATASETS.build(loader.dataset)
        assert dataset[0]["data_samples"].gt_instances.labels.tolist() == [0, 1]  # cat, dog
    coco.write(folder, "val", coco.content("val", masks=False))
    with pytest.raises(DataError, match=r"train.json has masks, .*val.json has none: --boxes-only leaves them out"):
        use_for_training(config(tmp_path), OwnData(folder))
    cfg = config(tmp_path)
    use_for_training(cfg, OwnData(folder, boxes_only=True))
    assert cfg.val_evaluator.metric == ["bbox"]
    assert cfg.model.roi_head.mask_head is None


def test_nothing_left(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "images").glob("val*"):
        path.unlink()
    with pytest.raises(DataError, match=r"val.json has no images and no annotations left"):
        use_for_training(config(tmp_path), OwnData(folder, drop_bad=True))


def test_images_in_both_splits_are_mentioned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco.content("val")
    content["images"][0]["file_name"] = "train0.png"
    coco.write(folder, "val", content)
    use_for_training(config(tmp_path), OwnData(folder))
    assert f"train and val share 1 image, such as {folder}/images/train0.png: " in capsys.readouterr().err


def test_other_layouts(folder: Path, tmp_path: Path) -> None:
    (folder / "train.json").rename(tmp_path / "labels.json")
    (folder / "images").rename(folder / "photos")
    cfg = config(tmp_path)
    data = OwnData(folder, train_annotations=tmp_path / "labels.json", train_images=Path("photos"), val_images=Path("photos"))
    use_for_training(cfg, data)
    assert cfg.train_dataloader.dataset.ann_file == str(tmp_path / "labels.json")
    assert cfg.val_dataloader.dataset.data_prefix.img == f"{folder}/photos/"


def test_perfect_predictions_have_an_ap_of_one(folder: Path, tmp_path: Path) -> None:
    """With ids of annotations that begin with 0, which pycocotools takes for none, and categories in another order."""
    content = coco.content("val")
    content["categories"].reverse()
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    coco.write(folder, "val", content)
    cfg = config(tmp_path)
    use_for_training(cfg, OwnData(folder, drop_bad=True))
    init_default_scope("mmdet")
    dataset: Any = DATASETS.build(cfg.val_dataloader.dataset)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]  # its truth has the image's own scale
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=truth.masks.to_tensor(torch.bool, "cpu"),
        )
        evaluator.process([sample], {})
    metrics = evaluator.evaluate(len(dataset))
    assert metrics["coco/bbox_mAP"] == metrics["coco/segm_mAP"] == 1


def checkpoint(classes: tuple[str, ...] | None, masks: bool = True) -> DetectorCheckpoint:
    weights = {"roi_head.mask_head.convs.0.conv.weight": torch.empty(1)} if masks else {}
    return DetectorCheckpoint("some.pth", weights, classes)


def test_a_checkpoint_is_tested_with_its_own_classes_and_masks(folder: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    use_for_testing(cfg, OwnData(folder), checkpoint(("cat", "dog")))
    assert cfg.test_evaluator == dict(type="CocoMetric", ann_file=str(folder / "val.json"), metric=["bbox", "segm"])
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2

    cfg = config(tmp_path)
    use_for_testing(cfg, OwnData(folder), checkpoint(("cat", "dog"), masks=False))
    assert cfg.model.roi_head.mask_head is None
    assert cfg.test_evaluator.metric == ["bbox"]

    cfg = config(tmp_path)
    use_for_testing(cfg, OwnData(folder, boxes_only=True), checkpoint(("cat", "dog")))
    assert cfg.model.roi_head.mask_head is not None  # it has weights; that they are of no use here is no reason to lose them
    assert cfg.test_evaluator.metric == ["bbox"]

    with pytest.raises(DataError, match=r"val.json: category 7 \('dog'\) is none of some.pth"):
        use_for_testing(config(tmp_path), OwnData(folder), checkpoint(("cat", "mouse")))
    coco.write(folder, "val", coco.content("val", masks=False))
    with pytest.raises(DataError, match=r"some.pth predicts masks, .*val.json has none: --boxes-only tests the boxes alone"):
        use_for_testing(config(tmp_path), OwnData(folder), checkpoint(("cat", "dog")))


def test_what_cannot_be_fitted(folder: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.model.roi_head = dict(type="StandardRoIHead")
    with pytest.raises(ConfigError, match="no bbox_head of the model has num_classes"):
        use_for_training(cfg, OwnData(folder))
    cfg = config(tmp_path)
    cfg.val_dataloader = None
    with pytest.raises(ConfigError, match="val_dataloader has no data set with an ann_file"):
        use_for_training(cfg, OwnData(folder))


class TestCommandLine:
    def test_options_that_need_others(self, folder: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, message in (
            ((FINETUNE, "--drop-bad"), "--drop-bad is of use with --data FOLDER only"),
            ((FINETUNE, "--train-images", "x"), "--train-images is of use with --data FOLDER only"),
            (("finetune/revbifpn-s0_finetune.py", "--data", folder, "--boxes-only"), "--boxes-only is for detection"),
            ((FINETUNE, "--data", folder / "x"), f"data folder not found: {folder}/x"),
        ):
            assert run_tool("train.py", *arguments) == 2
            assert capsys.readouterr().err == f"train: {message}\n"

    def test_missing_weights_come_with_address_sha256_and_options(
        self,
        folder: Path,
        tmp_path: Path,
        run_tool: RunTool,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run_tool("train.py", FINETUNE, "--data", folder) == 2
        published = PUBLISHED["s0"]
        assert capsys.readouterr().err == (
            f"train: checkpoint not found: revbifpn_s0.pth.tar. It is published at {published.url} (sha256 "
            f"{published.sha256}); that address may be named instead. Put the file there, or name another with --cfg-options "
            "model.backbone.init_cfg.checkpoint=FILE; --from-scratch begins without weights\n"
        )


def test_from_scratch_nothing_is_kept(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    set_from_scratch(cfg)
    assert cfg.model.backbone == dict(type="RevBiFPN", variant="s0", frozen_stages=-1, norm_eval=False, init_cfg=None)
    assert not any("lr_mult" in settings for settings in cfg.optim_wrapper.paramwise_cfg.custom_keys.values())
    detector = config(tmp_path, "mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py")
    set_from_scratch(detector)
    assert detector.model.backbone == dict(type="RevBiFPN", variant="s0", init_cfg=None)


def test_a_resumed_training_needs_no_weights_to_begin_with(tmp_path: Path) -> None:
    """The file of the published weights may be gone by then."""
    torch.save({"state_dict": {}, "meta": {}}, tmp_path / "epoch_1.pth")
    cfg = config(tmp_path)
    resume_from(cfg, str(tmp_path / "epoch_1.pth"))
    assert cfg.resume
    assert cfg.model.backbone.init_cfg is None
    check_first_weights(cfg)


def test_stages_learn_at_their_own_rates() -> None:
    cfg = Config.fromfile(FINETUNE)
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    with torch.device("meta"):
        detector: Any = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(detector, cfg.optim_wrapper)
    rates = {id(p): group["lr"] / 2e-4 for group in wrapper.optimizer.param_groups for p in group["params"]}

    def rate(module: torch.nn.Module) -> float:
        (only,) = {round(rates[id(p)], 6) for p in module.parameters() if p.requires_grad}
        return only

    backbone = detector.backbone
    frozen = [p for stage in range(2) for layer in backbone.stage_layers(stage) for p in layer.parameters()]
    assert not any(p.requires_grad for p in frozen)
    for stage in range(2, 5):
        assert {rate(layer) for layer in backbone.stage_layers(stage)} == {0.75 ** (4 - stage)}
    for module in (backbone.neck, detector.neck, detector.rpn_head, detector.roi_head):
        assert rate(module) == 1
