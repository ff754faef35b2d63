"""From command lines to a config: options, and data sets that are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from revbifpn.training.checks import check_data
from revbifpn.training.config import load_config
from revbifpn.training.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "mask_rcnn" / "mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"


def test_config_with_options(tmp_path: Path) -> None:
    cfg = load_config(CONFIG, {"train_dataloader.batch_size": 7})
    assert cfg.train_dataloader.batch_size == 7
    assert cfg.work_dir == "work_dirs/mask-rcnn_revbifpn-s0_hrfpn_1x_coco"
    assert load_config(CONFIG, work_dir=tmp_path).work_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tran_dataloader.batch_size": 4},
            "tran_dataloader.batch_size=4: 'tran_dataloader' is no setting; did you mean 'train",
        ),
        ({"data_root": "x"}, "data_root=x: 'data_root' is a variable that the config file has used up"),
        ({"zzz": 1}, "'zzz' is no setting; those are auto_scale_lr, custom_hooks,"),
        ({"custom_hooks.9.type": "x"}, "custom_hooks.9.type=x: Index 9 exceeds the length$"),
        ({"model.type.x": 1}, "model.type.x=1: 'model.type' holds no settings by name"),
        ({"model.backbone.variant": "s1", "model.type.x": 1}, "model.type.x=1: 'model.type' holds"),
    ],
)
def test_option_that_would_change_nothing_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--cfg-options {message}" if "=" in message else message):
        load_config(CONFIG, options)


def test_delete_goes_with_the_other_options_of_its_dict() -> None:
    cfg = load_config(CONFIG, {"model.neck.type": "FPN", "model.neck._delete_": True})
    assert cfg.model.neck == {"type": "FPN"}


def test_missing_data_set_is_named_with_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config(CONFIG)
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
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / tool, "--help"], capture_output=True, text=True, check=True, timeout=300
    )
    for option in ("--work-dir", "--cfg-options", "--launcher", "--amp"):
        assert option in done.stdout


def test_a_work_folder_in_which_the_config_would_be_overwritten_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG.read_text().replace("../", f"{CONFIG.parents[1]}/"))
    with pytest.raises(ConfigError, match=r"the work folder .* is that of .*config.py, which would be overwritten"):
        load_config(config, work_dir=tmp_path / ".")
