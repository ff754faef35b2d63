"""Long trainings: killed and resumed, damaged checkpoints, losses that are no numbers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from revbifpn import CheckpointError
from revbifpn.models.checkpoints import check_integrity
from revbifpn.training.hooks import NonFiniteLossError, NonFiniteLossHook
from revbifpn.training.runner import build_runner, resume_from

ROOT = Path(__file__).parents[2]


def train_command(config: Path, work_dir: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "train.py"), str(config), "--work-dir", str(work_dir), *options]


def train(config: Path, work_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(train_command(config, work_dir, *options), capture_output=True, text=True, env=environment)


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    return state


def test_killed_and_resumed_training_equals_one_that_was_not_killed(tiny_config: Path, tmp_path: Path) -> None:
    """Bit for bit: sampled RoIs, stochastic depth, order of images, optimizer, schedule; a validation in between."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = train(tiny_config, whole)
    assert done.returncode == 0, done.stderr[-2000:]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        train_command(tiny_config, broken), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (broken / "iter_2.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 2.0))  # at whatever step, or write of a checkpoint, that happens to be
    process.send_signal(signal.SIGKILL)
    process.wait()

    resumed = train(tiny_config, broken, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on from" in resumed.stderr
    ours, theirs = weights(broken / "iter_8.pth"), weights(whole / "iter_8.pth")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_resume_from_a_named_checkpoint_equals_too(tiny_config: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train(tiny_config, whole).returncode == 0
    done = train(tiny_config, again, "--resume", str(whole / "iter_6.pth"))
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = weights(again / "iter_8.pth"), weights(whole / "iter_8.pth")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[-len(content) // 3 :]
    else:
        content[len(content) // 2] ^= 0x10  # inside a tensor's values
    path.write_bytes(content)


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """A work folder with two checkpoints, as a training leaves it."""
    folder = tmp_path / "work"
    folder.mkdir()
    for step in (2, 10):
        torch.save({"state_dict": {"weight": torch.randn(100_000)}, "meta": {"iter": step}}, folder / f"iter_{step}.pth")
    return folder


@pytest.mark.parametrize("how", ["truncated", "bit-flipped"])
class TestDamagedCheckpoint:
    def test_is_refused_by_name_and_the_previous_one_is_named(self, work_dir: Path, how: str) -> None:
        damage(work_dir / "iter_10.pth", how)
        cfg = Config(dict(work_dir=str(work_dir), resume=False))
        with pytest.raises(CheckpointError, match=r"iter_10.pth is damaged.*newest usable one is .*iter_2.pth: --resume"):
            resume_from(cfg, str(work_dir / "iter_10.pth"))
        check_integrity(work_dir / "iter_2.pth")

    def test_is_passed_over_when_the_newest_usable_one_is_asked_for(
        self, work_dir: Path, how: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damage(work_dir / "iter_10.pth", how)
        cfg = Config(dict(work_dir=str(work_dir), resume=False))
        resume_from(cfg, "auto")
        assert cfg.load_from == str(work_dir / "iter_2.pth")
        assert "refused" in capsys.readouterr().err

    def test_leaves_nothing_to_go_on_from(self, work_dir: Path, how: str) -> None:
        for path in work_dir.glob("*.pth"):
            damage(path, how)
        with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*iter_10.pth.*iter_2.pth"):
            resume_from(Config(dict(work_dir=str(work_dir))), "auto")


def test_resume_takes_the_newest_by_step_not_by_name(work_dir: Path) -> None:
    cfg = Config(dict(work_dir=str(work_dir)))
    resume_from(cfg, "auto")
    assert cfg.resume
    assert cfg.load_from == str(work_dir / "iter_10.pth")


def test_resume_without_any_checkpoint_starts_anew(tmp_path: Path) -> None:
    cfg = Config(dict(work_dir=str(tmp_path)))
    resume_from(cfg, "auto")
    assert not cfg.resume
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*nowhere.pth"):
        resume_from(cfg, str(tmp_path / "nowhere.pth"))


def test_a_file_that_is_no_checkpoint_is_never_unpickled(tiny_config: Path, tmp_path: Path) -> None:
    """MMEngine alone would fall back to unpickling it."""

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path}/unpickled",))

    path = tmp_path / "iter_2.pth"
    torch.save({"state_dict": Malicious()}, path)
    done = train(tiny_config, tmp_path / "work", "--resume", str(path))
    assert done.returncode != 0
    assert "weights_only" in done.stderr.lower() or "weights only" in done.stderr.lower()
    assert not (tmp_path / "unpickled").exists()


def runner_with_bad_step(config: Path, work_dir: Path, action: str, bad_steps: tuple[int, ...]) -> object:
    """A Runner whose images are NaN at some steps."""
    cfg = Config.fromfile(config)
    cfg.launcher, cfg.work_dir = "none", str(work_dir)
    cfg.train_cfg.update(max_iters=4, val_interval=100)
    cfg.custom_hooks = [dict(type="NonFiniteLossHook", action=action, max_skips=2)]
    runner = build_runner(cfg)
    preprocess, calls = runner.model.data_preprocessor.forward, []

    def spoil(*args: object, **kwargs: object) -> object:
        data = preprocess(*args, **kwargs)
        calls.append(1)
        if len(calls) in bad_steps:
            data["inputs"] = data["inputs"] * float("nan")
        return data

    runner.model.data_preprocessor.forward = spoil
    return runner


def test_non_finite_loss_stops_with_the_step(tiny_config: Path, tmp_path: Path) -> None:
    runner = runner_with_bad_step(tiny_config, tmp_path / "work", "stop", (3,))
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 3 .*training stopped"):
        runner.train()  # type: ignore[attr-defined]
    assert all(p.isfinite().all() for p in runner.model.parameters())  # type: ignore[attr-defined]


def test_non_finite_loss_skips_the_step_and_nothing_else(tiny_config: Path, tmp_path: Path) -> None:
    runner = runner_with_bad_step(tiny_config, tmp_path / "work", "skip", (2,))
    runner.train()  # type: ignore[attr-defined]
    model = runner.model  # type: ignore[attr-defined]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    counts = {int(b) for n, b in model.backbone.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {3}  # four steps, one of them skipped
    (log,) = (tmp_path / "work").glob("*/*.log")
    assert "loss is nan at step 2 (on this process): step skipped" in log.read_text()


def test_skipping_on_and_on_stops(tiny_config: Path, tmp_path: Path) -> None:
    runner = runner_with_bad_step(tiny_config, tmp_path / "work", "skip", (1, 2, 3, 4))
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 3 .*2 steps before it were skipped"):
        runner.train()  # type: ignore[attr-defined]


def test_unknown_action_is_named() -> None:
    with pytest.raises(ValueError, match="action must be 'stop' or 'skip', got 'ignore'"):
        NonFiniteLossHook(action="ignore")
