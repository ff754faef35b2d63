"""tools/predict.py: pictures and a file in COCO's format, images that cannot be read, and MMDetection's own inferencer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from revbifpn.training.detection.drawing import contact_sheet, draw_picture, draw_predictions
from revbifpn.training.detection.predict import load_detector
from tests.conftest import ROOT, RunTool


@pytest.fixture
def checkpoint(tiny_config: Path, tmp_path: Path) -> Path:
    """Of the demo's detector, untrained: each proposal may be anything."""
    torch.manual_seed(0)
    cfg = Config.fromfile(tiny_config)
    init_default_scope("mmdet")
    path = tmp_path / "iter_1.pth"
    state_dict = MODELS.build(cfg.model).state_dict()
    torch.save({"state_dict": state_dict, "meta": {"dataset_meta": cfg.metainfo.to_dict()}}, path)
    return path


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    """Two images of the same name but for the suffix, one turned in a folder below, two that are broken, and another file."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    with Image.open(tiny_data / "val/000000.jpg") as image:
        image.save(root / "a.png")
        image.save(root / "a.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.crop((0, 0, 64, 32)).save(root / "more/turned.jpg", exif=exif)
    (root / "more/broken.jpg").write_bytes(b"broken")
    (root / "more/cut.JPG").write_bytes((root / "a.jpg").read_bytes()[:-500])
    (root / "notes.txt").write_text("no image")
    return root


def test_a_folder(
    folder: Path, tiny_config: Path, checkpoint: Path, tmp_path: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (folder, "--config", tiny_config, "--checkpoint", checkpoint, "--out", out, "--score-threshold", 0.1)
    assert run_tool("predict.py", *arguments) == 1
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()[-3:]
    assert lines[0].startswith(f"predict: skipped {folder}/more/broken.jpg: cannot identify image file")
    assert lines[1].startswith(f"predict: skipped {folder}/more/cut.JPG: image file is truncated")
    assert lines[2] == "predict: 2 of 5 images could not be read"
    content = json.loads((out / "predictions.json").read_text())
    assert f"{len(content['annotations'])} objects in 3 images: {out}/predictions.json, pictures in {out}/images" in said.out
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 64},
        {"id": 2, "file_name": "a.png", "width": 64, "height": 64},
        {"id": 3, "file_name": "more/turned.jpg", "width": 32, "height": 64},
    ]
    assert [category["name"] for category in content["categories"]] == ["0", "1", "2", "4", "7"]
    assert {annotation["image_id"] for annotation in content["annotations"]} == {1, 2, 3}
    assert all(annotation["score"] >= 0.1 for annotation in content["annotations"])
    api = COCO(str(out / "predictions.json"))
    for annotation in content["annotations"]:
        assert api.annToMask(annotation).sum() == annotation["area"]
    pictures = {path.relative_to(out / "images").as_posix() for path in (out / "images").rglob("*.*")}
    assert pictures == {"a.jpg", "a_png.jpg", "more/turned.jpg"}
    with Image.open(out / "images/more/turned.jpg") as picture:
        assert picture.size == (320, 640)


def test_one_image_is_what_mmdetections_inferencer_says(
    folder: Path, tiny_config: Path, checkpoint: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    arguments = ("--config", tiny_config, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--score-threshold", 0)
    assert run_tool("predict.py", folder / "a.png", *arguments, "--no-pictures") == 0
    assert not (tmp_path / "out/images").exists()
    ours = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    inferencer = DetInferencer(str(tiny_config), str(checkpoint), device="cpu", show_progress=False)
    (theirs,) = inferencer(str(folder / "a.png"), out_dir="")["predictions"]
    assert len(ours) == len(theirs["labels"]) > 5
    assert [a["category_id"] - 1 for a in ours] == theirs["labels"]
    np.testing.assert_allclose([a["score"] for a in ours], theirs["scores"], rtol=1e-5)
    boxes = np.array(theirs["bboxes"])
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_allclose([a["bbox"] for a in ours], boxes, rtol=1e-5, atol=1e-4)
    for annotation, mask in zip(ours, theirs["masks"], strict=True):
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]), coco_mask.decode(mask))


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py",
        "retinanet/retinanet_revbifpn-s0_hrfpn_1x_coco.py",
        "fcos/fcos_revbifpn-s0_hrfpn_1x_coco.py",
        "faster_rcnn/faster-rcnn_r50_revsilo_1x_coco.py",
    ],
)
def test_mmdetections_inferencer_takes_the_configs(name: str, folder: Path) -> None:
    cfg = Config.fromfile(ROOT / "configs" / name)
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    inferencer = DetInferencer(cfg, device="cpu", show_progress=False)
    (found,) = inferencer(str(folder / "a.png"), out_dir="")["predictions"]
    assert len(inferencer.model.dataset_meta["classes"]) == 80
    assert len(found["bboxes"]) == len(found["scores"]) == len(found["labels"])
    assert ("masks" in found) == ("mask" in name)


def test_an_interrupted_prediction_keeps_what_it_has(
    folder: Path, tiny_config: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revbifpn.training.detection import predict as module

    model = load_detector(Config.fromfile(tiny_config), str(checkpoint), "cpu")
    inference, calls = module.inference_detector, []

    def second_is_interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inference(*args)

    monkeypatch.setattr(module, "inference_detector", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.predict(model, [folder / "a.jpg", folder / "a.png"], folder, tmp_path / "out/p.json", None, 0.0)
    content = json.loads((tmp_path / "out/p.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg"]
    assert content["annotations"]


def test_what_is_refused(
    folder: Path, tiny_config: Path, checkpoint: Path, tmp_path: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    classification = "imagenet/revbifpn-s0_8xb128_in1k.py"
    for path, config, more, message in (
        (tmp_path / "nowhere", tiny_config, (), f"predict: no such image or folder: {tmp_path}/nowhere"),
        (tmp_path / "empty", tiny_config, (), f"predict: no images in {tmp_path}/empty: they are files that end in .jpg, "),
        (folder, classification, (), "is a config of classification: it finds no objects in images"),
        (folder, tmp_path / "none.py", (), "predict: config not found: "),
        (folder, tiny_config, ("--score-threshold", "30"), "argument --score-threshold: must be in 0..1, got 30.0"),
        (folder, tiny_config, ("--cfg-options", "modle.x=1"), "'modle' is no setting; did you mean 'model'?"),
    ):
        assert run_tool("predict.py", path, "--config", config, "--checkpoint", checkpoint, *more) == 2
        assert message in capsys.readouterr().err


def test_pictures_of_a_test_set_beside_its_truth(tiny_config: Path, tiny_data: Path, checkpoint: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(tiny_config)
    model = load_detector(cfg, str(checkpoint), "cpu")
    files = draw_predictions(cfg, model, tmp_path / "images", count=3, score_threshold=0.0)
    assert [path.name for path in files] == ["000000.png", "000001.png"]
    truth_alone = draw_predictions(cfg, model, tmp_path / "truth", count=3, score_threshold=1.0)
    ground_truth = COCO(cfg.test_evaluator.ann_file)
    for number, (file, without) in enumerate(zip(files, truth_alone, strict=True)):
        annotations = ground_truth.imgToAnns[sorted(ground_truth.imgs)[number]]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)])
        labels = torch.tensor([sorted(ground_truth.cats).index(a["category_id"]) for a in annotations])
        nothing = InstanceData(labels=torch.empty(0, dtype=torch.long), scores=torch.empty(0), bboxes=torch.empty(0, 4))
        with Image.open(tiny_data / f"val/{file.stem}.jpg") as image:
            truth = InstanceData(labels=labels, bboxes=boxes)
            wanted = draw_picture(image.convert("RGB"), nothing, cfg.metainfo, side=480, text_size=480 // 19, truth=truth)
        assert np.array_equal(np.asarray(wanted), np.asarray(Image.open(without)))
        # Of an untrained detector, ten uncertain objects or more: their names and boxes are in the classes' colours.
        colours = {tuple(colour) for colour in cfg.metainfo.palette}
        drawn = {tuple(pixel) for pixel in np.asarray(Image.open(file)).reshape(-1, 3).tolist()}
        assert colours & drawn
        assert not np.array_equal(np.asarray(Image.open(file)), np.asarray(wanted))
    contact_sheet(files, tmp_path / "sheet.png", side=100)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (206, 100)
    with pytest.raises(ValueError, match="no pictures for a contact sheet"):
        contact_sheet([], tmp_path / "none.png")


def test_a_picture_has_mask_box_and_truth_in_their_places() -> None:
    mask = np.zeros((50, 100), dtype=bool)
    mask[30:40, 20:60] = True
    found = InstanceData(
        labels=torch.tensor([1]),
        scores=torch.tensor([0.75]),
        bboxes=torch.tensor([[10.0, 25.0, 70.0, 45.0]]),
        masks=torch.from_numpy(mask[None]),
    )
    truth = InstanceData(labels=torch.tensor([0]), bboxes=torch.tensor([[80.0, 5.0, 95.0, 48.0]]))
    meta = {"classes": ("cat", "dog"), "palette": [(255, 0, 0), (0, 200, 0)]}
    picture = draw_picture(Image.new("RGB", (100, 50)), found, meta, side=400, text_size=12, truth=truth)
    assert picture.size == (400, 200)
    assert picture.getpixel((160, 140)) == (0, 100, 0)  # half of the class' colour over black
    assert picture.getpixel((60, 170)) == (0, 0, 0)  # inside the box, outside the mask
    assert picture.getpixel((40, 140)) == (0, 200, 0)  # the box
    assert picture.getpixel((318, 100)) == (255, 255, 255)  # the truth's box, two pixels outside


def test_the_most_certain_prediction_lies_on_top() -> None:
    boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0]] * 2)
    meta = {"classes": ("cat", "dog"), "palette": [(255, 0, 0), (0, 200, 0)]}
    for scores, top in (([0.9, 0.4], (255, 0, 0)), ([0.4, 0.9], (0, 200, 0))):
        found = InstanceData(labels=torch.tensor([0, 1]), scores=torch.tensor(scores), bboxes=boxes)
        picture = draw_picture(Image.new("RGB", (50, 50)), found, meta, side=400, text_size=12)
        assert picture.getpixel((80, 200)) == top
