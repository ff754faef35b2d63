"""``make demo`` in a short form: two steps on tiny data, through the same tools, functions and files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from revbifpn.datasets import demo_digits
from tests.conftest import ROOT, RunTool

#: Other figures than those of two steps, which are all zero; each differs.
REACHED = {"coco/bbox_mAP_50": 0.625, "coco/segm_mAP_50": 0.75}


@pytest.fixture
def demo(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool as a module, for two steps of training and images of 64x64."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools/demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = tiny_config.with_name("demo_in_short.py")
    config.write_text(f"_base_ = {str(tiny_config)!r}\ntrain_cfg = dict(max_iters=2, val_interval=100)\n")
    monkeypatch.setattr(module, "CONFIG", config)
    small = demo_digits.DemoDataParameters(num_train=8, num_val=2, image_size=64)
    monkeypatch.setattr(demo_digits, "DemoDataParameters", lambda: small)
    monkeypatch.chdir(ROOT)  # as the demo does
    return module


def test_the_whole_way(
    demo: ModuleType,
    run_tool: RunTool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_dir, path = tmp_path / "work", tmp_path / "demo.json"
    ran: list[str] = []

    def run(tool: str, *arguments: Any) -> None:
        ran.append(tool)
        assert ("randomness.seed=3" in arguments) == (tool == "train.py")
        if tool != "make_demo_data.py":  # it is there
            assert run_tool(tool, *arguments) == 0
        if tool == "test.py":
            metrics = work_dir / "test/metrics.json"
            content = json.loads(metrics.read_text())
            assert content["metrics"].keys() >= REACHED.keys()
            metrics.write_text(json.dumps({"metrics": content["metrics"] | REACHED}))

    monkeypatch.setattr(demo, "run", run)
    options = ["demo.py", "--work-dir", str(work_dir), "--seed", "3", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", options)
    demo.main()
    assert ran == ["make_demo_data.py", "train.py", "test.py"]
    shown = capsys.readouterr().out
    assert "box AP50 0.625, mask AP50 0.750" in shown
    assert f"checkpoint: {work_dir / 'iter_2.pth'}" in shown
    reached = json.loads(path.read_text())
    assert (reached["box_ap50"], reached["mask_ap50"], reached["images"]) == (0.625, 0.75, 2)
    assert "torch" in reached["environment"]
    for picture in ("predictions.png", "memory.png"):
        with Image.open(work_dir / picture) as image:
            assert min(image.size) > 100
    assert len(list((work_dir / "images").glob("*.png"))) == 2

    # What is not reached is an error, when everything is done and written.
    for name in ("run", "draw_memory"):
        monkeypatch.setattr(demo, name, lambda *arguments: None)
    monkeypatch.setattr(demo, "draw_predictions", lambda checkpoint, work_dir: 2)
    monkeypatch.setattr(sys, "argv", [*options, "--min-box-ap50", "0.63"])
    path.unlink()
    with pytest.raises(SystemExit, match=r"demo: box AP50 0.625 is under 0.63; try another --seed"):
        demo.main()
    assert json.loads(path.read_text())["box_ap50"] == 0.625


def test_a_tool_that_fails_ends_it(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(demo, "TOOLS", tmp_path)
    with pytest.raises(SystemExit, match=r"demo: tools/broken.py failed with status 3; its message is above"):
        demo.run("broken.py")
