"""Long trainings: killed and resumed, damaged checkpoints."""

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
from revbifpn.training.checkpoints import resume_from

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
