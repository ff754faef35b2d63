"""Real trainings with MMEngine's Runner on the tiny image folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from revbifpn import CheckpointError
from revbifpn.training.checkpoints import resume_from
from revbifpn.training.checks import check_data
from revbifpn.training.config import set_num_classes, use_amp
from tests.training.classification.conftest import MakeConfig, fresh_runner


def train(cfg: Config) -> Runner:
    set_num_classes(cfg, ["train_dataloader"])
    check_data(cfg, "train_dataloader", "val_dataloader")
    runner = fresh_runner(cfg)
    runner.train()
    return runner


def saved(work_dir: str | Path, epoch: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(work_dir) / f"epoch_{epoch}.pth", weights_only=False)
    return content


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def scalars(work_dir: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")) for line in path.open()]


def test_training_learns_and_logs(make_config: MakeConfig) -> None:
    """The classes differ in colour: a few steps are enough. Scalars go to TensorBoard, progress tells what time remains."""
    cfg = make_config(**{"train_cfg.max_epochs": 4})
    runner = train(cfg)
    records = scalars(cfg.work_dir)
    accuracy = [record for record in records if "accuracy/top1" in record]
    assert len(accuracy) == 4
    assert accuracy[-1]["accuracy/top1"] > 60
    assert accuracy[-1]["accuracy/top2"] >= accuracy[-1]["accuracy/top1"]
    assert accuracy[-1]["accuracy/images"] == 9
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    rates = [record["lr"] for record in records if "lr" in record]
    assert rates[0] < max(rates) > rates[-1]  # warm-up, then cosine
    (log,) = Path(cfg.work_dir).glob("*/*.log")
    assert "eta: " in log.read_text()
    assert runner.iter == 12

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = Path(cfg.work_dir).glob("*/vis_data")
    events = EventAccumulator(str(folder)).Reload()
    assert {"loss", "lr", "accuracy/top1"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)


def test_validation_and_checkpoint_take_the_ema_weights(make_config: MakeConfig) -> None:
    cfg = make_config()
    runner = fresh_runner(cfg)
    seen: dict[str, Any] = {"average": None, "validated": []}

    def follow(*args: Any, **kwargs: Any) -> None:
        state = runner.model.backbone.state_dict()
        if seen["average"] is None:
            seen["average"] = copy.deepcopy(state)
        else:
            for key, value in seen["average"].items():
                if value.is_floating_point():
                    value.lerp_(state[key], 0.2)
        seen["last"] = copy.deepcopy(state)

    class FollowHook(Hook):
        priority = "LOWEST"
        after_train_iter = staticmethod(follow)

        def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            seen["validated"] = copy.deepcopy(runner.model.backbone.state_dict())

    runner.register_hook(FollowHook())
    runner.train()
    floats = [key for key, value in seen["average"].items() if value.is_floating_point()]
    state, now = saved(cfg.work_dir, 2)["state_dict"], runner.model.backbone.state_dict()
    for key in floats:
        torch.testing.assert_close(seen["validated"][key], seen["average"][key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state[f"backbone.{key}"], seen["average"][key], rtol=1e-5, atol=1e-6)
        assert torch.equal(now[key], seen["last"][key])  # swapped back
    assert any(not torch.equal(seen["average"][key], seen["last"][key]) for key in floats)


@pytest.mark.parametrize(("model", "size"), [("revbifpn_s0", 64), ("test_resnet", 32)])
def test_resumed_training_equals_an_uninterrupted_one(make_config: MakeConfig, tmp_path: Path, model: str, size: int) -> None:
    """Bit for bit: order and augmentation of the images, dropout, random erasing, Mixup, EMA, optimizer, schedule, with a
    worker that loads images and a validation in between, after which a new best score has the checkpoint written again.
    """
    settings = {
        "default_hooks.checkpoint.save_best": "accuracy/top1",
        "model.model_args": dict(drop_rate=0.3),
        "model.mixup": dict(mixup_alpha=0.4, cutmix_alpha=1.0),
        "train_dataloader.num_workers": 1,
        "train_dataloader.dataset.transform.input_size": size,
        "val_dataloader.dataset.transform.input_size": size,
        "train_cfg.max_epochs": 3,
        "optim_wrapper.accumulative_counts": 2 if model == "test_resnet" else 1,
    }
    if model == "test_resnet":
        settings["train_dataloader.batch_size"] = 3  # four steps an epoch; odd batches go unmixed
    whole = make_config(model, work_dir=tmp_path / "whole", **settings)
    train(whole)

    again = make_config(model, work_dir=tmp_path / "again", **settings)
    resume_from(again, str(tmp_path / "whole" / "epoch_1.pth"))
    runner = train(again)
    assert runner.epoch == 3
    ours, theirs = saved(again.work_dir, 3), saved(whole.work_dir, 3)
    assert_equal(ours["state_dict"], theirs["state_dict"])
    assert_equal(ours["ema_state_dict"], theirs["ema_state_dict"])
    of_whole = [r for r in scalars(whole.work_dir) if r.get("epoch", 0) > 1 and "loss" in r]
    of_again = [r for r in scalars(again.work_dir) if "loss" in r]
    assert len(of_again) == 2 * len(runner.train_dataloader)
    assert [r["loss"] for r in of_again] == [r["loss"] for r in of_whole]


def test_accumulated_gradients_equal_those_of_the_large_batch(make_config: MakeConfig, tmp_path: Path) -> None:
    """Three batches of 4 with accumulation take the step of one batch of 12 (LayerNorm: no batch statistics)."""
    weights = []
    for batch_size, count in ((12, 1), (4, 3)):
        cfg = make_config("test_convnext", work_dir=tmp_path / f"work_{count}")
        cfg.train_dataloader.batch_size = batch_size
        cfg.train_cfg.max_epochs = 1
        cfg.optim_wrapper.update(
            optimizer=dict(opt="momentum", lr=0.1, momentum=0.0), accumulative_counts=count, clip_grad=None
        )
        cfg.model.data_preprocessor.random_erasing = None
        cfg.custom_hooks, cfg.param_scheduler = [], []
        start = fresh_runner(cfg).model.backbone.state_dict()
        weights.append(train(cfg).model.backbone.state_dict())
    moved = max((weights[0][key] - start[key]).abs().max() for key in start)
    assert moved > 1e-3
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=1e-5 * float(moved))


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradients_are_clipped_to_their_norm(make_config: MakeConfig, max_norm: float) -> None:
    """Of all parameters together. A step of plain SGD goes as far as the learning rate times the clipped norm."""
    lr = 0.1
    cfg = make_config("revbifpn_s0")
    cfg.train_dataloader.batch_size = 12  # all images: one step
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.update(
        optimizer=dict(opt="momentum", lr=lr, momentum=0.0, weight_decay=0.0), clip_grad=dict(max_norm=max_norm)
    )
    cfg.custom_hooks, cfg.param_scheduler = [], []
    runner = fresh_runner(cfg)
    before = [param.detach().clone() for param in runner.model.parameters()]
    runner.train()
    after = [param.detach() for param in runner.model.parameters()]
    moved = float(torch.cat([(a - b).flatten().double() for a, b in zip(after, before, strict=True)]).norm())
    (norm,) = [record["grad_norm"] for record in scalars(cfg.work_dir) if "grad_norm" in record]
    assert norm > 0.1
    assert moved == pytest.approx(lr * min(max_norm, norm), rel=1e-3)  # weights near one take steps in multiples of 1e-7


def test_amp_on_a_cpu_trains_in_bfloat16(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = make_config(**{"train_cfg.max_epochs": 1})
    use_amp(cfg)
    runner = fresh_runner(cfg)
    types = []
    runner.model.backbone.fc.register_forward_hook(lambda module, args, output: types.append((module.training, output.dtype)))
    runner.train()
    assert {dtype for training, dtype in types if training} == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in runner.model.parameters())


def test_skipped_validation_image_does_not_count(make_config: MakeConfig, own_folder: Path) -> None:
    (own_folder / "val/red/0.png").write_bytes(b"broken")
    cfg = make_config(data=own_folder, **{"train_cfg.max_epochs": 1, "val_dataloader.dataset.on_error": "skip"})
    train(cfg)
    (record,) = [record for record in scalars(cfg.work_dir) if "accuracy/top1" in record]
    assert record["accuracy/images"] == 8
    (log,) = Path(cfg.work_dir).glob("*/*.log")
    assert "val/red/0.png (index 6) cannot be decoded" in log.read_text()


def test_resuming_needs_no_weights_to_begin_with(make_config: MakeConfig, tmp_path: Path) -> None:
    """A fine-tuning goes on although the file that it began with is gone; the first time it is needed."""
    cfg = make_config(**{"train_cfg.max_epochs": 1})
    train(cfg)
    again = make_config(**{"model.checkpoint": str(tmp_path / "gone.pth")})
    resume_from(again, "auto")
    assert train(again).epoch == 2
    first = make_config(work_dir=tmp_path / "first", **{"model.checkpoint": str(tmp_path / "gone.pth")})
    resume_from(first, "auto")
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*gone.pth"):
        fresh_runner(first)


class TestWrongResume:
    @pytest.fixture
    def checkpoint(self, make_config: MakeConfig, tmp_path: Path) -> Path:
        cfg = make_config(work_dir=tmp_path / "first", **{"train_cfg.max_epochs": 1})
        train(cfg)
        return tmp_path / "first" / "epoch_1.pth"

    @pytest.mark.parametrize(("model", "classes"), [("test_efficientnet", 3), ("test_resnet", 4)])
    def test_checkpoint_of_another_model(
        self, checkpoint: Path, make_config: MakeConfig, tmp_path: Path, model: str, classes: int
    ) -> None:
        cfg = make_config(model, work_dir=tmp_path / "second", **{"model.num_classes": classes})
        resume_from(cfg, str(checkpoint))
        with pytest.raises(CheckpointError, match=rf"the checkpoint {checkpoint} of --resume does not fit the model"):
            fresh_runner(cfg).train()
        assert not [record for record in scalars(tmp_path / "second") if "loss" in record]

    def test_weights_alone_are_no_training(self, checkpoint: Path, make_config: MakeConfig, tmp_path: Path) -> None:
        torch.save(saved(checkpoint.parent, 1)["state_dict"], tmp_path / "weights.pth")
        with pytest.raises(
            CheckpointError, match=r"weights.pth is no checkpoint of a training: it has no meta and no state_d"
        ):
            resume_from(make_config(), str(tmp_path / "weights.pth"))
