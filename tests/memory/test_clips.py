"""The profiler on classifiers of clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from revbifpn.memory import cli
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.sources import ClipSubject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import SubjectError

ROOT = Path(__file__).parents[2]


def test_frames_make_clips_of_a_timm_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a clip of twice the frames, what grows with the batch takes twice the memory."""
    per_clip = {}
    for frames in (2, 4):
        path = tmp_path / f"{frames}.json"
        options = ["--frames", str(frames), "--batch", "2", "--image-size", "64", "--json", str(path), "--device", "cuda"]
        assert cli.main(["test_resnet:stored", *options]) == 0
        (report,) = json.loads(path.read_text())["reports"]
        assert (report["batch"], report["image"]) == (2, [64, 64])
        per_clip[frames] = report["per_sample"]
    assert f"test_resnet on {frames} frames" in capsys.readouterr().out
    assert per_clip[4] == pytest.approx(2 * per_clip[2], rel=0.05)


def test_revbifpn_has_its_modes() -> None:
    subject = ClipSubject("revbifpn_s0", 2, "shift")
    assert subject.modes == ("reversible", "exact", "stored")
    report = profile_subject(subject, "reversible", 1, (32, 32), Settings(optimizer=None, device="cuda"))
    assert (report.batch, report.image, report.mode) == (1, (32, 32), "reversible")


def test_what_frames_are_not_for() -> None:
    with pytest.raises(SubjectError, match="frames are for timm models"):
        ClipSubject("tests.memory.conftest:make_tiny", 4)
    with pytest.raises(SubjectError, match="RevBiFPN's couplings, and ResNet has none"):
        ClipSubject("test_resnet", 4, "shift").build((64, 64))
    for options in (["--frames", "0"], ["--temporal", "shift"]):
        with pytest.raises(SystemExit):
            cli.parse_args(["revbifpn_s0", *options])


def test_a_config_of_clips() -> None:
    subject = ConfigSubject.from_file(str(ROOT / "configs/video/revbifpn-s0_daisee_16f.py"))
    assert (subject.image, subject.batch, subject.top1) == ((224, 224), 8, None)
    subject.cfg.model.update(name="test_resnet", temporal="mean")  # which takes a tenth of the time
    report = profile_subject(subject, "stored", 1, (32, 32), Settings(device="cuda"))
    assert (report.batch, report.image, report.optimizer) == (1, (32, 32), "adamw")
