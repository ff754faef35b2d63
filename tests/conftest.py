"""Settings for all tests, and a tiny semi-synthetic data set for those that train a detector."""

from __future__ import annotations

import functools
import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.image_folders import make_image_folder

ROOT = Path(__file__).parents[1]
DEMO_CONFIG = ROOT / "configs" / "demo" / "mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"

RunTool = Callable[..., int]

# The tensors here are small: more threads than this spend their time waiting for each other.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run long tests too, and long forms of those that have one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="left to --long: it takes long, or shows what others show too"))


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether tests take their long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def _metafiles_are_read_once() -> Iterator[None]:
    """MMEngine reads a hundred YAML files of MMDetection's for each ``mmdet::`` in a config, which takes half a second."""
    if importlib.util.find_spec("mmengine") is None:
        yield
        return
    from mmengine.config import utils

    with mock.patch.object(utils, "_get_cfg_metainfo", functools.cache(utils._get_cfg_metainfo)):
        yield


@pytest.fixture(autouse=True)
def _global_settings() -> Iterator[None]:
    """MMEngine's Runner switches deterministic algorithms on: not for the tests after."""
    # The environment is left alone: replacing it while native threads read theirs crashes the process.
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 2 validation images of 64x64."""
    from revbifpn.datasets.demo_digits import DemoDataParameters, make_demo_data

    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(folder, DemoDataParameters(num_train=8, num_val=2, image_size=64))
    return folder


@pytest.fixture
def tiny_config(tiny_data: Path, tmp_path: Path) -> Path:
    """The demo's config on the tiny data: 8 iterations, a checkpoint every second, deterministic, validation at the 4th."""
    path = tmp_path / "tiny.py"
    path.write_text(f"""
_base_ = "{DEMO_CONFIG.as_posix()}"
model = dict(backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_iters=8, val_interval=4)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root="{tiny_data}/"))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root="{tiny_data}/"))
val_evaluator = dict(ann_file="{tiny_data}/annotations/val.json")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
randomness = dict(seed=0, deterministic=True)
""")
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """An image folder that the test may spoil."""
    return make_image_folder(tmp_path / "data")


def forget_runs() -> None:
    """MMEngine keeps its log, scalars and scope in global objects: the next Runner shares nothing with those before it."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    for kind in (Visualizer, MMLogger, MessageHub, DefaultScope):
        kind._instance_dict.clear()


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """``run_tool(name, *arguments)``: the exit status of a tool, run in this process, since starting one takes seconds."""

    def run(name: str, *arguments: object) -> int:
        forget_runs()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
