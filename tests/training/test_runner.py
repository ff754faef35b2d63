"""The command lines' early errors."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from revbifpn.training.runner import check_data, load_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "mask_rcnn" / "mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"


def arguments(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": CONFIG, "work_dir": None, "cfg_options": None, "launcher": "none", **values})


def test_config_with_options(tmp_path: Path) -> None:
    cfg = load_config(arguments(cfg_options={"train_dataloader.batch_size": 7}))
    assert cfg.train_dataloader.batch_size == 7
    assert cfg.work_dir == "work_dirs/mask-rcnn_revbifpn-s0_hrfpn_1x_coco"
    assert load_config(arguments(work_dir=tmp_path)).work_dir == str(tmp_path)


def test_missing_config_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="config not found: nowhere.py"):
        load_config(arguments(config=Path("nowhere.py")))


def test_missing_data_set_is_named_with_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config(arguments())
    with pytest.raises(
        FileNotFoundError, match="train_dataloader not found: data/coco does not exist.*instances_train2017.json"
    ):
        check_data(cfg, "train_dataloader")
    for part in ("annotations/instances_train2017.json", "train2017/x"):
        path = tmp_path / "data/coco" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    check_data(cfg, "train_dataloader")
    with pytest.raises(FileNotFoundError, match=r"val_dataloader not found: data/coco/annotations/instances_val2017.json"):
        check_data(cfg, "val_dataloader")


def test_wrapped_data_sets_are_found() -> None:
    cfg = Config(dict(loader=dict(dataset=dict(type="RepeatDataset", dataset=dict(ann_file="a.json", data_root="missing")))))
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        check_data(cfg, "loader")


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_tools_answer_help(tool: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / tool, "--help"], capture_output=True, text=True, check=True)
    for option in ("--work-dir", "--cfg-options", "--launcher", "--amp"):
        assert option in done.stdout
