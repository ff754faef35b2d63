"""The wheel: what is in it, and what can be done with it without a clone; no network is needed, the clone is left alone."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.image_folders import make_image_folder

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"

# Importing what the extras install, and neither the core nor what it depends on, fails.
CORE_ALONE = """
import sys
for name in ("mmengine", "mmcv", "mmdet", "matplotlib", "rich", "sklearn", "skimage", "tensorboard", "onnx", "webdataset"):
    sys.modules[name] = None
"""
TRAIN_STEP = """
import timm, torch, revbifpn
print(revbifpn.__file__)
model = timm.create_model("revbifpn_s0", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
before = model.head.fc.weight.detach().clone()
torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
optimizer.step()
assert not torch.equal(model.head.fc.weight, before)
"""


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([str(part) for part in command], cwd=cwd, env=settings, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made as ``python -m build`` does: a source distribution of a copy of the clone, and the wheel of that."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("revbifpn", "configs", "model_zoo"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for source, kind in ((clone, "sdist"), (folder / f"revbifpn-{PROJECT['version']}", "wheel")):
        done = run(sys.executable, "-c", BUILD, kind, folder, cwd=source)
        assert done.returncode == 0, done.stderr[-3000:]
        if kind == "sdist":
            with tarfile.open(folder / f"revbifpn-{PROJECT['version']}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own, without dependencies."""
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel)
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_configs_and_model_index_are_where_mim_looks(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        files = {f"revbifpn/.mim/configs/{p.relative_to(ROOT / 'configs')}": p for p in (ROOT / "configs").rglob("*.py")}
        files["revbifpn/.mim/model-index.yml"] = ROOT / "model_zoo/model-index.yml"
        assert {name for name in names if name.startswith("revbifpn/.mim/")} == set(files)
        for name, path in files.items():
            assert archive.read(name) == path.read_bytes()


def test_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if "/.mim/" not in name and ".dist-info/" not in name}
    tracked = [path for path in (ROOT / "revbifpn").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {str(path.relative_to(ROOT)) for path in tracked if ".mim" not in path.parts}


def test_metadata_and_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"revbifpn-{PROJECT['version']}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        points = configparser.ConfigParser()
        points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2206.14098"]
    assert set(points["console_scripts"]) == {"revbifpn-memory", "revbifpn-sparsity", "revbifpn-train", "revbifpn-test"}


def test_core_alone_makes_a_model_and_trains_it(site: Path, tmp_path: Path) -> None:
    done = run(sys.executable, "-c", CORE_ALONE + TRAIN_STEP, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == site / "revbifpn"


@pytest.mark.parametrize("command", ["train", "test"])
def test_commands_without_mmengine_say_what_to_install(site: Path, tmp_path: Path, command: str) -> None:
    code = f"{CORE_ALONE}\nfrom revbifpn.training.cli.{command} import main\nmain()"
    done = run(sys.executable, "-c", code, "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 2
    assert re.fullmatch(rf"{command}: this needs MMEngine: pip install 'revbifpn\[train\]'.*\n", done.stderr)


def test_train_and_test_with_a_config_of_the_wheel(site: Path, tmp_path: Path) -> None:
    make_image_folder(tmp_path / "images")
    loaders = [f"{loader}_dataloader." for loader in ("train", "val", "test")]
    small = [f"{loader}{option}" for loader in loaders for option in ("num_workers=0", "persistent_workers=False")]
    small += [f"{loader}dataset.transform.input_size=64" for loader in loaders]
    common = ("--data", "images", "--cfg-options", *small)
    name = "finetune/revbifpn-s0_finetune.py"
    options = (*common, "train_cfg.max_epochs=1")
    done = run(site / "bin/revbifpn-train", name, "--from-scratch", *options, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr[-3000:]
    (reported,) = re.findall(r"accuracy/loss: ([\d.]+)", done.stdout)
    checkpoint = "work_dirs/revbifpn-s0_finetune/epoch_1.pth"
    done = run(site / "bin/revbifpn-test", name, checkpoint, *common, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"accuracy/loss: ([\d.]+)", done.stdout) == [reported]


def test_no_version_older_than_the_tested_one_is_allowed() -> None:
    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    tested = {r.name: r.specifier for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]
    for requirement in wanted:
        if requirement.name == PROJECT["name"]:
            continue
        (floor,) = requirement.specifier
        (pinned,) = tested[requirement.name]
        assert floor.operator in (">=", "=="), requirement
        assert (pinned.operator, pinned.version) == ("==", floor.version), requirement
