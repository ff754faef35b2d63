"""Configs that are wrong: train.py and test.py say file, line and what is wrong, in one line, and end with status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from revbifpn.training.config_files import CONFIGS, find_config, named_build_errors, read_config, read_sources
from revbifpn.training.errors import ConfigError
from tests.conftest import ROOT
from tests.training.classification.conftest import Refusal, write_config

# What stands in line 3 of a config that is based on a good one -> what is said, after file and line.
UNREADABLE = {
    "model = dict(": "syntax error: '(' was never closed",
    "epochs = number_of_epochs": "NameError: name 'number_of_epochs' is not defined",
    "epochs = 1 / 0": "ZeroDivisionError: division by zero",
}
UNBUILDABLE = {
    'model = dict(type="ImageClasifier")': "model.type: no model is registered as 'ImageClasifier'; did you mean "
    "'ImageClassifier'?",
    'custom_hooks = [dict(type="Zzz")]': "custom_hooks.0.type: no hook is registered as 'Zzz'; a class of your own has to be "
    "imported by custom_imports",
    'train_cfg = dict(type="EpochBasdTrainLoop")': "train_cfg.type: no loop is registered as 'EpochBasdTrainLoop'; did you "
    "mean 'EpochBasedTrainLoop'?",
    'optim_wrapper = dict(type="OptimWraper")': "optim_wrapper.type: no optim_wrapper is registered as 'OptimWraper'; did you "
    "mean 'OptimWrapper'?",
    'train_dataloader = dict(collate_fn={"type": "defaultcollate"})': "train_dataloader.collate_fn.type: no function is "
    "registered as 'defaultcollate'; did you mean 'default_collate'?",
    "model = dict(num_clases=3)": "model.num_clases: ImageClassifier takes no such argument",
    "model = dict(model_args=dict(foo=3))": "model.model_args.foo: ResNet takes no such argument",
    "train_dataloader = dict(batchsize=3)": "train_dataloader.batchsize: DataLoader takes no such argument",
    'model = dict(name="resnet999")': "model.name: timm knows no model 'resnet999'",
}


@pytest.fixture
def base(own_folder: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "base.py", own_folder, tmp_path / "work")


@pytest.fixture
def faulty(base: Path, tmp_path: Path) -> Path:
    return tmp_path / "faulty.py"


@pytest.mark.parametrize("line", UNREADABLE)
@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_config_that_cannot_be_read(faulty: Path, refusal: Refusal, tool: str, line: str) -> None:
    faulty.write_text(f'_base_ = "base.py"\n\n{line}\n')
    checkpoint = ["weights.pth"] if tool == "test.py" else []
    assert refusal(tool, faulty, *checkpoint) == f"{tool.removesuffix('.py')}: {faulty}:3: {UNREADABLE[line]}"


@pytest.mark.parametrize("line", UNBUILDABLE)
def test_setting_that_nothing_can_be_made_of(faulty: Path, refusal: Refusal, line: str) -> None:
    faulty.write_text(f'_base_ = "base.py"\n\n{line}\n')
    assert refusal("train.py", faulty) == f"train: {faulty}:3: {UNBUILDABLE[line]}"


def test_fault_in_a_base_file_is_named_there(faulty: Path, base: Path, refusal: Refusal) -> None:
    faulty.write_text('_base_ = ["base.py"]\n')
    base.write_text(f"{base.read_text()}\nmodel = dict(\n")
    assert (
        refusal("train.py", faulty)
        == f"train: {base}:{len(base.read_text().splitlines())}: syntax error: '(' was never closed"
    )


def test_missing_base_file_is_named(faulty: Path, refusal: Refusal) -> None:
    faulty.write_text('epochs = 3\n_base_ = [\n    "base.py",\n    "../nowhere/base.py",\n]\n')
    missing = faulty.parents[1] / "nowhere/base.py"
    assert refusal("train.py", faulty) == f"train: {faulty}:4: _base_ names a file that does not exist: {missing}"


def test_config_without_a_model_or_data(faulty: Path, refusal: Refusal) -> None:
    faulty.write_text("epochs = 3\n")
    assert refusal("train.py", faulty) == f"train: {faulty} has no model: is it meant to be the _base_ of another config?"
    faulty.write_text('model = dict(type="ImageClassifier", name="test_resnet")\n')
    assert f"{faulty} has no train_dataloader, no train_cfg, no optim_wrapper" in refusal("train.py", faulty)


def test_option_that_is_wrong(base: Path, refusal: Refusal) -> None:
    def refused(option: str) -> str:
        return refusal("train.py", base, "--cfg-options", option)

    assert refused("model.num_classes").endswith("argument --cfg-options: expected KEY=VALUE, got 'model.num_classes'")
    assert refused("model.num_classes=(1,2").endswith("Imbalanced brackets exist in (1,2")
    # "interval" stands in the files too, but not as a setting of the model.
    assert refused("model.interval=1") == (
        f"train: {base}, --cfg-options or _base_ of another package: model.interval: ImageClassifier takes no such argument"
    )


def test_launcher_that_did_not_start_the_process(base: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert "not started by torch's launcher" in refusal("train.py", base, "--launcher", "pytorch")


def test_module_that_is_not_there(faulty: Path, refusal: Refusal) -> None:
    faulty.write_text('_base_ = "base.py"\ncustom_imports = dict(imports=["nowhere_to_be_found"])\n')
    assert refusal("train.py", faulty) == f"train: {faulty}: ModuleNotFoundError: No module named 'nowhere_to_be_found'"


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: [1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: ParserError: while parsing a flow sequence .* line 1"):
        read_config(tmp_path / "c.yaml")
    (tmp_path / "c.txt").write_text("model")
    with pytest.raises(ConfigError, match=r"c\.txt: OSError: Only py/yml/yaml/json type"):
        read_config(tmp_path / "c.txt")
    (tmp_path / "c.json").write_text('{"model": {"type": "MaskRCNN"}}')
    assert read_config(tmp_path / "c.json").model.type == "MaskRCNN"


def test_line_of_a_setting(tmp_path: Path) -> None:
    """By its place in the config, through variables of the file's own; the last one, as in Python."""
    path = tmp_path / "c.py"
    path.write_text("""kind = "Own"
shared = dict(interval=1, batch_size=2)
train_dataloader = dict(**shared, dataset=dict(type=kind))
default_hooks = dict(logger=dict(interval=1))
model = dict(backbone=dict(depth=1))
model["backbone"] = None
default_hooks = {"logger": {"interval": 2}}
""")
    (source,) = read_sources(path)
    assert source.find("default_hooks.logger.interval") == 7
    assert source.find("default_hooks.logger.interval", 1) == 4
    assert source.find("train_dataloader.batch_size") == 2
    assert source.find("train_dataloader.dataset.type", "Own") is None
    assert source.find_value("Own") == 1
    assert source.find("model.backbone.depth") == 5
    assert source.find("model.depth") is None
    assert source.find("model") == 5


def test_errors_that_are_not_the_configs_keep_their_traceback() -> None:
    cfg = Config(dict(model=dict(type="ImageClassifier")))
    for error in (KeyError("loss"), TypeError("unsupported operand"), RuntimeError("CUDA error"), ValueError("no")):
        with pytest.raises(type(error)) as caught, named_build_errors(cfg):
            raise error
        assert caught.value is error


def test_config_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = CONFIGS / "imagenet/revbifpn-s0_8xb128_in1k.py"
    assert find_config(Path("imagenet/revbifpn-s0_8xb128_in1k.py")) == own
    assert find_config(Path("configs/imagenet/revbifpn-s0_8xb128_in1k.py")) == own
    assert read_config(own).model == Config.fromfile(ROOT / "configs/imagenet/revbifpn-s0_8xb128_in1k.py").model
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/revbifpn-s0_8xb128_in1k.py").touch()
    assert find_config(Path("imagenet/revbifpn-s0_8xb128_in1k.py")) == Path("imagenet/revbifpn-s0_8xb128_in1k.py")
    with pytest.raises(FileNotFoundError, match=r"config not found: nowhere\.py; the package's own are in "):
        find_config(Path("nowhere.py"))
    with pytest.raises(FileNotFoundError, match=r"revbifpn-s0_in1k\.py; similar .* imagenet/revbifpn-s0_8xb128_in1k\.py"):
        find_config(Path("revbifpn-s0_in1k.py"))
