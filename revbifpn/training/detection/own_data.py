"""Own data in COCO's format for a detector's config: found, checked, and written into the config, from one ``--data FOLDER``.

pycocotools is imported when there are files to check: classification, whose command lines are the same, does without.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.checks import datasets, names_timm_model
from revbifpn.training.detection.heads import leave_out_mask_head, load_no_masks, predicts_masks, set_classes
from revbifpn.training.errors import ConfigError

if TYPE_CHECKING:
    from revbifpn.datasets.coco_checks import Fault
    from revbifpn.datasets.coco_files import CocoSplit
    from revbifpn.training.detection.checkpoint import DetectorCheckpoint


@dataclass(frozen=True)
class OwnData:
    """Where a data set lies, and what to do with it.

    Attributes:
        root: its folder; the other paths are relative to it, or absolute.
        train_annotations, val_annotations: the annotation files; None looks for them.
        train_images, val_images: the folders of the images; None looks for them.
        boxes_only: leave masks alone, those of the files and the detector's.
        drop_bad: go on without what is at fault, instead of refusing the files.
    """

    root: Path
    train_annotations: Path | None = None
    val_annotations: Path | None = None
    train_images: Path | None = None
    val_images: Path | None = None
    boxes_only: bool = False
    drop_bad: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace, cfg: Any) -> OwnData | None:
        """What the options of :func:`add_arguments` say; None without ``--data``, and for a config of classification.

        Raises:
            ConfigError: if there are others without it, or for classification.
        """
        given = {name: value for name in cls.__dataclass_fields__ if (value := getattr(args, name, None))}
        if given and (args.data is None or names_timm_model(cfg)):
            where = "for detection" if names_timm_model(cfg) else "of use with --data FOLDER only"
            raise ConfigError(f"--{next(iter(given)).replace('_', '-')} is {where}")
        return None if args.data is None or names_timm_model(cfg) else cls(args.data, **given)


def add_arguments(parser: argparse.ArgumentParser, *splits: str) -> None:
    """The options of detection that go with ``--data``, for ``"train"`` and ``"val"``, or one of them."""
    group = parser.add_argument_group("own data in COCO's format (detection, with --data FOLDER)")
    for split in splits:
        group.add_argument(f"--{split}-annotations", type=Path, metavar="FILE", help=f"default: FOLDER/{split}.json")
        group.add_argument(
            f"--{split}-images",
            type=Path,
            metavar="FOLDER",
            help="what file names are relative to (default: FOLDER, or FOLDER/images, or the split's folder in one of them)",
        )
    group.add_argument("--boxes-only", action="store_true", help="leave masks alone: those of the files, and the detector's")
    group.add_argument(
        "--drop-bad",
        action="store_true",
        help="go on without the images and annotations that are at fault; your files stay as they are",
    )


def use_for_training(cfg: Any, data: OwnData) -> None:
    """Set a detector's config to train and validate on own data.

    The classes are those of the training file, and there are masks if it has some and the config's detector predicts them.
    Files with faults are not used: with ``drop_bad`` copies without, in ``annotations/`` of the work folder.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        DataError: if something in the files is at fault, listing the first of each kind by file and id.
        ConfigError: if the config's detector or data sets cannot be fitted to them.
    """
    splits = [_read(data, name) for name in ("train", "val")]
    masks = predicts_masks(cfg) and splits[0].has_masks and not data.boxes_only
    if masks and not splits[1].has_masks:
        raise DataError(f"{splits[0].file} has masks, {splits[1].file} has none: --boxes-only leaves them out")
    train, val = _checked(splits, data.drop_bad, masks, None, "", Path(cfg.work_dir))
    _say_shared_images(train, val)
    set_classes(cfg, train.classes)
    if not masks:
        leave_out_mask_head(cfg)
        load_no_masks(cfg)
    _use(cfg, "train_dataloader", train)
    for name in ("val", "test"):
        _use(cfg, f"{name}_dataloader", val)
        cfg[f"{name}_evaluator"] = _evaluator(val, masks)


def use_for_testing(cfg: Any, data: OwnData, checkpoint: DetectorCheckpoint) -> None:
    """Set a detector's config to test a checkpoint on own data: its classes, and masks if it has a mask head.

    Raises:
        FileNotFoundError, DataError, ConfigError: as :func:`use_for_training`; and if the file has other classes.
    """
    split = _read(data, "val")
    masks = checkpoint.has_masks and not data.boxes_only
    if masks and not split.has_masks:
        raise DataError(f"{checkpoint.source} predicts masks, {split.file} has none: --boxes-only tests the boxes alone")
    (val,) = _checked([split], data.drop_bad, masks, checkpoint.classes, checkpoint.source, Path(cfg.work_dir))
    checkpoint.fit_config(cfg)
    set_classes(cfg, val.classes)
    if not masks:
        load_no_masks(cfg)
    _use(cfg, "test_dataloader", val)
    cfg.test_evaluator = _evaluator(val, masks)


def _read(data: OwnData, name: str) -> CocoSplit:
    from revbifpn.datasets.coco_files import read_split

    return read_split(data.root, name, getattr(data, f"{name}_annotations"), getattr(data, f"{name}_images"))


def _checked(
    splits: Sequence[CocoSplit], drop_bad: bool, masks: bool, classes: Sequence[str] | None, source: str, work_dir: Path
) -> list[CocoSplit]:
    """The splits without faults, in files; without ``classes`` the first split's are those of all."""
    from revbifpn.datasets.coco_checks import check_split, fit_classes

    faults: list[Fault] = []
    result = []
    for split in splits:
        good, found = check_split(split, masks)
        if classes is None:
            classes, source = good.classes, str(split.file)
        good, differences = fit_classes(good, classes, source)
        faults += found + differences
        result.append(good)
    if faults:
        _report(faults, splits, result, drop_bad)
    for split in result:
        if empty := [key for key in ("images", "annotations") if not split.content[key]]:
            raise DataError(f"{split.file} has no {' and no '.join(empty)}" + (" left" if faults else ""))
    pairs = zip(splits, result, strict=True)
    return [was if is_now.content == was.content else is_now.written(work_dir / "annotations") for was, is_now in pairs]


def _report(faults: Sequence[Fault], before: Sequence[CocoSplit], after: Sequence[CocoSplit], drop_bad: bool) -> None:
    from revbifpn.datasets.coco_checks import summary

    lost = {
        key: sum(len(split.content[key]) for split in before) - sum(len(split.content[key]) for split in after)
        for key in ("images", "annotations")
    }
    without = "without " + " and ".join(_count(number, key[:-1]) for key, number in lost.items())
    count = _count(len(faults), "fault")
    if not drop_bad:
        raise DataError(f"the annotation files have {count}; --drop-bad goes on {without}:\n{summary(faults)}")
    _say(f"the annotation files have {count}; going on {without}, in copies of the files:\n{summary(faults)}")


def _say_shared_images(train: CocoSplit, val: CocoSplit) -> None:
    files = [{(split.images / image["file_name"]).resolve() for image in split.content["images"]} for split in (train, val)]
    if shared := sorted(files[0] & files[1]):
        _say(f"train and val share {_count(len(shared), 'image')}, such as {shared[0]}: validation will flatter")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _use(cfg: Any, loader: str, split: CocoSplit) -> None:
    found = list(datasets(cfg.get(loader)))
    if not found:
        raise ConfigError(f"{cfg.filename}: {loader} has no data set with an ann_file, so --data cannot take its place")
    for dataset in found:
        place = dict(data_root="", ann_file=str(split.file.absolute()), data_prefix=dict(img=f"{split.images.absolute()}/"))
        dataset.update(type="CocoDataset", **place)


def _evaluator(split: CocoSplit, masks: bool) -> dict[str, Any]:
    return dict(type="CocoMetric", ann_file=str(split.file.absolute()), metric=["bbox", "segm"] if masks else ["bbox"])
