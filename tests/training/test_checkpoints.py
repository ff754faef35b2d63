"""Checkpoints are never unpickled freely, and the process is left as it was."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from revbifpn import CheckpointError
from revbifpn.training.checkpoints import WEIGHTS_ONLY, load_from_weights_only, resume_from
from revbifpn.training.config import load_config
from revbifpn.training.runner import build_runner

DEMO = Path(__file__).parents[2] / "configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"


@MODELS.register_module(force=True)
class ModelOfTwoParts(BaseModel):
    def __init__(self, init_cfg: dict[str, str] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs: Tensor, mode: str = "tensor") -> Tensor:
        result: Tensor = self.layer(inputs)
        return result


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.trace}",))


@pytest.fixture
def malicious(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that holds a model's weights and something else; nothing may have run it after the test."""
    # Torch's switch for safe reading in the whole process would do what is the project's to do.
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    path, trace = tmp_path / "iter_7.pth", tmp_path / "unpickled"
    torch.save({"state_dict": ModelOfTwoParts().state_dict(), "meta": {}, "extra": Malicious(trace)}, path)
    torch.load(path, weights_only=False)
    trace.unlink()  # free unpickling runs it
    yield path
    assert not trace.exists()


def make_runner(work_dir: Path, **settings: object) -> Runner:
    model = dict(type="ModelOfTwoParts", **settings.pop("model", {}))  # type: ignore[dict-item]
    return build_runner(Config(dict(model=model, work_dir=str(work_dir), launcher="none", **settings)))


def test_what_a_config_loads_from(malicious: Path, tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "work", load_from=str(malicious))
    with pytest.raises(CheckpointError, match=r"iter_7.pth is no checkpoint that can be read safely \(weights_only=True\)"):
        runner.load_or_resume()


def test_pretrained_parts_of_other_packages(malicious: Path, tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "work", model=dict(init_cfg=dict(type="Pretrained", checkpoint=str(malicious))))
    with pytest.raises(CheckpointError, match=r"iter_7.pth is no checkpoint that can be read safely"):
        runner.model.init_weights()


@pytest.mark.parametrize("how", ["auto", "named"])
def test_what_is_resumed(malicious: Path, tmp_path: Path, how: str) -> None:
    cfg = Config(dict(model=dict(type="ModelOfTwoParts"), work_dir=str(tmp_path)))
    with pytest.raises(CheckpointError, match=r"iter_7.pth is no checkpoint that can be read safely"):
        resume_from(cfg, "auto" if how == "auto" else str(malicious))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the temporary folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_addresses(malicious: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    torch.save({"state_dict": ModelOfTwoParts().state_dict()}, tmp_path / "good.pth")
    loaded = load_from_weights_only(f"{WEIGHTS_ONLY}{server}/good.pth", map_location="cpu")
    assert loaded["state_dict"].keys() == ModelOfTwoParts().state_dict().keys()
    for name, message in (("iter_7.pth", "can be read safely"), ("missing.pth", "HTTP Error 404")):
        with pytest.raises(CheckpointError, match=message):
            load_from_weights_only(f"{WEIGHTS_ONLY}{server}/{name}")


def test_other_objects_can_be_read_in_the_same_process(tmp_path: Path) -> None:
    """A data set may hold pickled samples: the guard is for checkpoints alone."""
    load_config(DEMO)
    make_runner(tmp_path / "work").load_or_resume()
    assert not [name for name in os.environ if "WEIGHTS_ONLY" in name]  # torch's switches for the whole process
    torch.save(Path("x"), tmp_path / "sample.pt")
    assert torch.load(tmp_path / "sample.pt", weights_only=False) == Path("x")


@pytest.mark.parametrize(("hook", "beside"), [("SafeCheckpointHook", ["epoch_1.pth"]), ("CheckpointHook", [])])
def test_the_checkpoint_before_is_there_while_the_next_one_is_written(hook: str, beside: list[str], tmp_path: Path) -> None:
    """MMEngine's own hook removes it first; if that fails here, ours is not needed any more."""
    from unittest.mock import MagicMock

    from mmengine.logging import MessageHub
    from mmengine.registry import HOOKS

    from revbifpn.training import hooks  # noqa: F401  (registers)

    found: list[list[str]] = []

    def save(folder: str, name: str, *args: object, **kwargs: object) -> None:
        found.append(sorted(path.name for path in Path(folder).glob("*.pth")))
        (Path(folder) / name).touch()

    runner = MagicMock(work_dir=str(tmp_path), save_checkpoint=save)
    runner.message_hub = MessageHub.get_instance(f"{hook}-{tmp_path.name}")
    checkpoint = HOOKS.build(dict(type=hook, interval=1, max_keep_ckpts=1))
    checkpoint.before_train(runner)
    for runner.epoch in range(2):
        checkpoint._save_checkpoint(runner)
    assert found == [[], beside]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]
