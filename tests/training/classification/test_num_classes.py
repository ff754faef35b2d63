"""The number of classes, read from the folder where a config leaves it open; and checks that change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.checks import check_data, check_first_weights
from revbifpn.training.config import set_from_scratch, set_num_classes
from revbifpn.training.errors import ConfigError
from tests.image_folders import CLASSES
from tests.training.classification.conftest import MakeConfig

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def numbers(cfg: Config) -> list[int]:
    return [cfg.model.num_classes, *(cfg[loader].dataset.num_classes for loader in LOADERS)]


def test_a_check_changes_nothing(make_config: MakeConfig) -> None:
    cfg = make_config(**{"train_dataloader.dataset.num_classes": 1000})
    before = copy.deepcopy(cfg.to_dict())
    check_data(cfg, *LOADERS)
    check_first_weights(cfg)
    assert cfg.to_dict() == before


@pytest.mark.parametrize("loaders", [LOADERS, ("val_dataloader",)])
def test_open_number_is_that_of_the_class_folders(make_config: MakeConfig, loaders: tuple[str, ...]) -> None:
    cfg = make_config(**{"model.num_classes": None, "train_dataloader.dataset.num_classes": None})
    set_num_classes(cfg, loaders)
    assert numbers(cfg) == [len(CLASSES)] * 4
    check_data(cfg, *LOADERS)


def test_given_number_stays_and_goes_to_the_data_sets(make_config: MakeConfig) -> None:
    cfg = make_config(**{"model.num_classes": 7})
    set_num_classes(cfg, LOADERS)
    assert numbers(cfg) == [7] * 4
    with pytest.raises(DataError, match="has 3 classes, the model 7"):
        check_data(cfg, *LOADERS)


def test_open_number_without_folders_to_count(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"model.num_classes": None, "train_dataloader.dataset.name": "torch/cifar10"}
    with pytest.raises(
        ConfigError, match=r"config\.py leaves the number of classes open, .* --cfg-options model\.num_classes=N"
    ):
        set_num_classes(make_config(**settings), ["train_dataloader"])
    cfg = make_config(data=tmp_path / "nowhere", **{"model.num_classes": None})
    with pytest.raises(FileNotFoundError, match="data set of train_dataloader not found: .*nowhere does not exist"):
        set_num_classes(cfg, LOADERS)


def test_from_scratch_leaves_nothing_to_weights_that_are_not_there(make_config: MakeConfig) -> None:
    cfg = make_config(**{"model.checkpoint": "x.pth", "model.norm_eval": True, "optim_wrapper.optimizer.layer_decay": 0.8})
    set_from_scratch(cfg)
    assert (cfg.model.checkpoint, cfg.model.norm_eval) == (None, False)
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(opt="adamw", lr=2e-3, weight_decay=0.05)
    check_first_weights(cfg)
    with pytest.raises(ConfigError, match=r"--from-scratch is for models with a backbone, a MaskRCNN has none"):
        set_from_scratch(Config(dict(model=dict(type="MaskRCNN"))))


def test_weights_of_a_detector_that_are_not_there() -> None:
    init = dict(type="Pretrained", checkpoint="nowhere/revbifpn_s3.pth.tar")
    cfg = Config(dict(model=dict(type="MaskRCNN", backbone=dict(type="RevBiFPN", init_cfg=init))))
    message = r"s3\.pth\.tar\. .* \(sha256 1695576b.*backbone\.init_cfg\.checkpoint=FILE; --from-scratch begins"
    with pytest.raises(FileNotFoundError, match=message):
        check_first_weights(cfg)
    for elsewhere in ("torchvision://resnet50", "https://example.org/x.pth", None):
        init["checkpoint"] = elsewhere  # type: ignore[assignment]
        check_first_weights(Config(dict(model=dict(type="MaskRCNN", backbone=dict(type="RevBiFPN", init_cfg=init)))))
