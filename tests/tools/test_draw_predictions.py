"""tools/draw_predictions.py: pictures of a detector's predictions, and what it refuses."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from tests.conftest import ROOT

Draw = Callable[..., None]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["draw_predictions.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools/draw_predictions.py"), run_name="__main__")

    return run


def test_pictures_and_a_sheet_of_them(tiny_config: Path, tmp_path: Path, draw: Draw) -> None:
    cfg = Config.fromfile(tiny_config)
    init_default_scope("mmdet")
    checkpoint = {"state_dict": MODELS.build(cfg.model).state_dict(), "meta": {"dataset_meta": cfg.metainfo.to_dict()}}
    torch.save(checkpoint, tmp_path / "iter_1.pth")
    draw(tiny_config, tmp_path / "iter_1.pth", "--out", tmp_path / "out", "--count", 2)
    pictures = [*(tmp_path / "out/images").iterdir(), tmp_path / "out/predictions.png"]
    assert len(pictures) == 3
    for path in pictures:
        with Image.open(path) as picture:
            picture.verify()


def test_what_is_refused(tiny_config: Path, tmp_path: Path, draw: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path}/unpickled",))

    torch.save({"state_dict": Malicious()}, tmp_path / "bad.pth")
    for arguments, message in (
        ((tmp_path / "none.py", "x.pth"), "draw_predictions: config not found: "),
        ((tiny_config, "x.pth"), "draw_predictions: checkpoint not found: x.pth"),
        ((tiny_config, tmp_path / "bad.pth"), "bad.pth is no checkpoint that can be read safely"),
        ((tiny_config, "x.pth", "--count", "0"), "argument --count: must be 1 at least, got 0"),
        (("imagenet/revbifpn-s0_8xb128_in1k.py", "x.pth"), "is a config of classification: there are no predictions"),
    ):
        with pytest.raises(SystemExit) as stop:
            draw(*arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "unpickled").exists()
