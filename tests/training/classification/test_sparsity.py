"""``sparsity = dict(...)`` in a config: masks, log, checkpoints, EMA, resuming, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from revbifpn.sparsity import SparseTraining
from revbifpn.training.checkpoints import resume_from
from revbifpn.training.config import set_options
from revbifpn.training.errors import ConfigError
from revbifpn.training.sparsity import SparsityHook

from .conftest import ROOT, MakeConfig, fresh_runner

RIGL = {"sparsity": dict(sparsity=0.75, method="rigl", update_every=2)}


def train(cfg: Config) -> Runner:
    runner = fresh_runner(cfg)
    runner.train()
    return runner


def saved(work_dir: str, epoch: int) -> dict[str, Any]:
    return torch.load(Path(work_dir) / f"epoch_{epoch}.pth", weights_only=False)  # type: ignore[no-any-return]


def hook_of(runner: Runner) -> SparsityHook:
    return next(hook for hook in runner.hooks if isinstance(hook, SparsityHook))


def assert_masked(state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    assert masks
    for name, mask in masks.items():
        assert not state[f"backbone.{name}"][~mask].any()
        assert int(mask.sum()) == mask.numel() - int(0.75 * mask.numel())


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished training of three epochs of three steps."""
    from .conftest import write_config

    folder = tmp_path_factory.mktemp("sparse")
    cfg = Config.fromfile(write_config(folder / "config.py", image_folder, folder / "work"))
    set_options(cfg, {**RIGL, "train_cfg.max_epochs": 3})
    train(cfg)
    return cfg


def test_weights_and_their_average_are_saved_sparse_under_the_same_keys(whole: Config, make_config: MakeConfig) -> None:
    checkpoint = saved(whole.work_dir, 3)
    masks = checkpoint["sparsity"]["masks"]
    assert checkpoint["sparsity"]["steps"] == 9
    assert_masked(checkpoint["state_dict"], masks)  # the averaged weights, which MMEngine saves there
    assert_masked({key.removeprefix("module."): value for key, value in checkpoint["ema_state_dict"].items()}, masks)
    dense = make_config()
    set_options(dense, {"train_cfg.max_epochs": 1})
    train(dense)
    assert list(saved(dense.work_dir, 1)["state_dict"]) == list(checkpoint["state_dict"])
    assert any(not torch.equal(mask, saved(whole.work_dir, 1)["sparsity"]["masks"][name]) for name, mask in masks.items())


def test_density_is_in_the_log_and_in_tensorboard(whole: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    checkpoint = saved(whole.work_dir, 3)["sparsity"]["masks"].values()
    density = sum(int(mask.sum()) for mask in checkpoint) / sum(mask.numel() for mask in checkpoint)
    (folder,) = Path(whole.work_dir).glob("*/vis_data")
    records = [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]
    logged = [record["density"] for record in records if "lr" in record]
    assert logged == [pytest.approx(density, abs=1e-4)] * 9
    events = EventAccumulator(str(folder)).Reload().Scalars("density")
    assert [event.value for event in events] == pytest.approx([density] * 9, abs=1e-4)
    (log,) = Path(whole.work_dir).glob("*/*.log")
    assert "dense: first convolution" in log.read_text()
    assert f"density: {density:.4f}" in log.read_text()


def test_resumed_training_equals_the_uninterrupted_one(whole: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    again = make_config(work_dir=tmp_path / "again")
    set_options(again, {**RIGL, "train_cfg.max_epochs": 3})
    resume_from(again, str(Path(whole.work_dir) / "epoch_1.pth"))
    train(again)
    ours, theirs = saved(again.work_dir, 3), saved(whole.work_dir, 3)
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
    assert all(torch.equal(mask, theirs["sparsity"]["masks"][name]) for name, mask in ours["sparsity"]["masks"].items())


def test_clipping_sees_masked_gradients_and_accumulation_counts_updates(make_config: MakeConfig) -> None:
    cfg = make_config()
    set_options(cfg, {**RIGL, "sparsity.update_every": 1, "train_cfg.max_epochs": 2, "optim_wrapper.accumulative_counts": 2})
    runner = fresh_runner(cfg)
    seen: list[bool] = []
    wrapper = None
    build = runner.build_optim_wrapper

    def spied(*args: Any, **kwargs: Any) -> Any:
        nonlocal wrapper
        wrapper = build(*args, **kwargs)
        clip = wrapper._clip_grad

        def look() -> None:
            sparse = hook_of(runner).training
            assert sparse is not None
            seen.append(all(not w.grad[~sparse.masks[name]].any() for name, w in sparse.weights.items()))
            clip()

        wrapper._clip_grad = look
        return wrapper

    runner.build_optim_wrapper = spied
    runner.train()
    sparse = hook_of(runner).training
    assert sparse is not None
    assert seen == [True] * 3  # six batches
    assert sparse.steps == 3
    assert sparse.schedule.end == 2  # three quarters of three updates, rounded down


def test_half_precision_and_a_transformed_network(make_config: MakeConfig) -> None:
    cfg = make_config()
    options = {
        "sparsity": dict(method="set", update_every=1),
        "model.sparse_ift": dict(kind="wide", sparsity=0.5),
        "optim_wrapper.type": "AutocastOptimWrapper",
        "train_cfg.max_epochs": 1,
    }
    set_options(cfg, options)
    runner = train(cfg)
    sparse = hook_of(runner).training
    assert sparse is not None
    solved, _ = runner.model.sparse_ift
    assert 0.4 < solved < 0.7
    assert sparse.density == pytest.approx(1 - solved, abs=0.01)


def test_dense_fine_tuning_begins_with_the_sparse_weights(whole: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    cfg = make_config(work_dir=tmp_path / "dense")
    path = Path(whole.work_dir) / "epoch_3.pth"
    set_options(cfg, {"model.checkpoint": str(path), "train_cfg.max_epochs": 1})
    runner = train(cfg)
    masks = saved(whole.work_dir, 3)["sparsity"]["masks"]
    weights = dict(runner.model.backbone.named_parameters())
    revived = sum(int((weights[name][~mask] != 0).sum()) for name, mask in masks.items())
    # At 32 pixels the last maps are 1x1: the outer weights of their 3x3 kernels see padding alone and have no gradient.
    assert revived > 0.4 * sum(int((~mask).sum()) for mask in masks.values())


def test_faults_are_named(whole: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    faults = [
        ({"sparsity": 0.75}, r"sparsity must be a dict, .*got 0\.75"),
        ({"sparsity": dict(sparsity=1.5, method="static")}, r"sparsity: sparsity is the fraction of zeros.*got 1\.5"),
        ({"sparsity": dict(sparsity=0.5)}, r"sparsity: rigl would never change a mask: with update_every=100"),
        ({"sparsity": dict(sparsity=0.5, methode="set")}, r"sparsity: got an unexpected keyword argument 'methode'"),
        ({"sparsity": dict(sparsity=0.5, method="static", dense=["layer9.*"])}, r"'layer9\.\*'.*matches no parameter"),
    ]
    for options, message in faults:
        cfg = make_config(work_dir=tmp_path / "faulty")
        cfg.merge_from_dict(options)
        with pytest.raises(ConfigError, match=message):
            train(cfg)
    other = make_config(work_dir=tmp_path / "faulty")
    set_options(other, {"sparsity": dict(sparsity=0.5, method="rigl", update_every=2)})
    resume_from(other, str(Path(whole.work_dir) / "epoch_1.pth"))
    with pytest.raises(ConfigError, match="the state is of another sparsity or schedule"):
        train(other)


def test_a_dense_training_cannot_be_resumed_sparse(make_config: MakeConfig, tmp_path: Path) -> None:
    dense = make_config(work_dir=tmp_path / "dense")
    set_options(dense, {"train_cfg.max_epochs": 1})
    train(dense)
    cfg = make_config(work_dir=tmp_path / "sparse")
    set_options(cfg, RIGL)
    resume_from(cfg, str(tmp_path / "dense" / "epoch_1.pth"))
    with pytest.raises(ConfigError, match="the checkpoint to resume from has no masks"):
        train(cfg)


@pytest.mark.parametrize("percent", [50, 75])
def test_the_recipe_of_sparse_pre_training_and_dense_fine_tuning(percent: int) -> None:
    cfg = Config.fromfile(ROOT / f"configs/sparse/revbifpn-s0-sparse{percent}_8xb128_in1k.py")
    dense = Config.fromfile(ROOT / "configs/imagenet/revbifpn-s0_8xb128_in1k.py")
    assert cfg.optim_wrapper == dense.optim_wrapper
    assert cfg.train_cfg == dense.train_cfg
    model = timm.create_model(cfg.model.name)
    sparse = SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), **cfg.sparsity)
    assert sparse.density == pytest.approx(1 - percent / 100, abs=1e-3)
    pytest.importorskip("mmdet")
    fine = Config.fromfile(ROOT / f"configs/sparse/mask-rcnn_revbifpn-s0-sparse{percent}_hrfpn_1x_coco.py")
    assert "sparsity" not in fine
    last = f"work_dirs/revbifpn-s0-sparse{percent}_8xb128_in1k/epoch_{cfg.train_cfg.max_epochs}.pth"
    assert fine.model.backbone.init_cfg.checkpoint == last
