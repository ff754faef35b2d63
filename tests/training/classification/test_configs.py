"""The recipe files: each builds its model, data and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, PARAM_SCHEDULERS

import revbifpn.training.classification
import revbifpn.training.hooks  # noqa: F401
from revbifpn.models.variants import VARIANTS
from tests.conftest import ROOT

IN1K = sorted((ROOT / "configs/imagenet").glob("*.py"))
OTHERS = sorted([*(ROOT / "configs/finetune").glob("revbifpn-*.py"), *(ROOT / "configs/fashion_mnist").glob("*.py")])


def names(path: Path) -> str:
    return path.stem


def test_there_is_a_recipe_for_each_variant() -> None:
    assert [path.stem for path in IN1K] == [f"revbifpn-{name}_8xb128_in1k" for name in VARIANTS]


@pytest.mark.parametrize("path", IN1K, ids=names)
def test_imagenet_recipe_has_the_variants_image_size(path: Path) -> None:
    cfg = Config.fromfile(path)
    variant = VARIANTS[path.stem.split("_")[0].removeprefix("revbifpn-")]
    assert cfg.model.name == f"revbifpn_{variant.name}"
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.transform.input_size == variant.image_size
        assert loader.dataset.num_classes == cfg.model.num_classes == 1000
    assert cfg.val_dataloader.sampler.round_up is False
    assert "recipe is not known" in path.read_text()  # said in the file itself


@pytest.mark.parametrize("path", [*IN1K, *OTHERS], ids=names)
def test_validation_in_two_processes_takes_every_image_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the samplers that the recipe names: of an odd number of images none is taken twice, as padding would."""
    cfg = Config.fromfile(path)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        seen: list[int] = []
        for rank in range(2):
            monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 2))
            seen += DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=range(9)))
        assert sorted(seen) == list(range(9))


@pytest.mark.parametrize("path", [*IN1K, *OTHERS], ids=names)
def test_recipe_builds(path: Path, image_folder: Path) -> None:
    """Model, data and transforms, optimizer and schedule, on the tiny folder."""
    cfg = Config.fromfile(path)
    cfg.model.update(num_classes=3, checkpoint=None)
    with torch.device("meta"):
        model: Any = MODELS.build(cfg.model)
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    trained = [param for group in optim.param_groups for param in group["params"]]
    assert {id(param) for param in trained} >= {id(param) for param in model.parameters() if param.requires_grad}
    assert f"revbifpn_{model.backbone.variant.name}" == cfg.model.name
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(root=str(image_folder), num_classes=3)
        data: Any = DATASETS.build(loader.dataset)
        size = loader.dataset.transform.input_size
        assert data[0]["inputs"].shape == (3, size, size)
    for settings in cfg.param_scheduler:
        settings = dict(settings)
        convert = settings.pop("convert_to_iter_based", False)
        cls = PARAM_SCHEDULERS.get(settings.pop("type"))
        (cls.build_iter_from_epoch if convert else cls)(optim, **settings, **({"epoch_length": 10} if convert else {}))
