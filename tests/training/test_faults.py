"""Long trainings: resumed from a named checkpoint, and from damaged ones. Those that are killed are in test_kills.py."""

from __future__ import annotations

import os
import subprocess
import sys
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
    return subprocess.run(
        train_command(config, work_dir, *options), capture_output=True, text=True, env=environment, timeout=280
    )


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    return state


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
