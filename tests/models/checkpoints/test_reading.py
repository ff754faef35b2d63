"""Which of a file's weights are taken, under which names, and from which file."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from mmengine.hooks import EMAHook
from torch import Tensor, nn

from revbifpn import CheckpointError
from revbifpn.models import read_checkpoint
from revbifpn.models.checkpoints import read

RAW = {"a.weight": torch.zeros(2)}
EMA = {"a.weight": torch.ones(2)}


def under_module(weights: dict[str, Tensor], **more: Tensor) -> dict[str, Tensor]:
    return {**more, **{f"module.{key}": value for key, value in weights.items()}}


CONTENTS: dict[str, dict[str, Any]] = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA, "args": argparse.Namespace(lr=1), "epoch": 3},
    "torchvision": {"model": RAW, "model_ema": under_module(EMA, n_averaged=torch.tensor(7)), "optimizer": {}},
    # What its name says, unless MMEngine wrote the file.
    "other": {"state_dict": RAW, "ema_state_dict": EMA, "meta": {"epoch": 3}},
    "mmengine": {
        "state_dict": EMA,
        "ema_state_dict": under_module(RAW, steps=torch.tensor(7)),
        "meta": {"mmengine_version": "0.10"},
    },
}


def assert_holds(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.parametrize("kind", CONTENTS)
def test_of_two_sets_of_weights_the_average_is_taken_and_the_other_offered(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(CONTENTS[kind], path)
    assert_holds(read_checkpoint(path), EMA)
    assert_holds(read_checkpoint(path, ema=False), RAW)
    assert read(path).choice == "its EMA weights, ema=False takes the raw ones"
    assert read(path, ema=False).choice == "its raw weights, not the EMA ones"


def test_timm_takes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    for kind in ("timm", "torchvision"):
        torch.save(CONTENTS[kind] | {"args": None}, path)
        theirs = timm.models.load_state_dict(str(path))
        theirs.pop("n_averaged", None)
        assert_holds(read_checkpoint(path), theirs)
        assert_holds(read_checkpoint(path, ema=False), timm.models.load_state_dict(str(path), use_ema=False))


def test_mmengines_hook_swaps_the_two_as_is_assumed(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    hook = EMAHook(momentum=0.5)
    hook.before_run(SimpleNamespace(model=model))
    averaged = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.sub_(1)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint = {"state_dict": model.state_dict(), "meta": {"mmengine_version": "0.10"}}
    hook.before_save_checkpoint(None, checkpoint)
    torch.save(checkpoint, tmp_path / "iter_1.pth")
    assert_holds(read_checkpoint(tmp_path / "iter_1.pth"), averaged)
    assert_holds(read_checkpoint(tmp_path / "iter_1.pth", ema=False), raw)


def test_one_set_of_weights_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    for content in (RAW, {"state_dict": RAW}, {"state_dict": RAW, "state_dict_ema": None}):
        torch.save(content, path)
        assert read(path, ema=False).choice == read(path).choice == ""
        assert_holds(read_checkpoint(path, ema=False), RAW)
    torch.save({"model_ema": EMA}, path)
    assert_holds(read_checkpoint(path), EMA)
    with pytest.raises(CheckpointError, match="checkpoint.pth holds EMA weights alone: leave ema=False out"):
        read_checkpoint(path, ema=False)


@pytest.mark.parametrize(
    ("prefix", "keys", "found"),
    [
        ("", ["module.a"], ["a"]),
        ("", ["_orig_mod.module.a"], ["a"]),
        ("", ["backbone.a", "neck.b"], ["a"]),
        ("", ["module.backbone.a", "module.neck.b"], ["a"]),
        ("backbone", ["backbone.a", "neck.b"], ["a"]),
        ("student.backbone.", ["student.backbone.a", "teacher.backbone.a"], ["a"]),
        ("student", ["student.rev_stack.a", "b"], ["rev_stack.a"]),
    ],
)
def test_prefixes(tmp_path: Path, prefix: str, keys: list[str], found: list[str]) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: torch.zeros(1) for key in keys}, path)
    assert list(read(path, prefix=prefix).state_dict) == found


def test_a_prefix_that_no_key_has_is_named(tmp_path: Path) -> None:
    torch.save({"body.a": torch.zeros(1)}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="has no keys that begin with the prefix 'backbone.', but body.a"):
        read(tmp_path / "checkpoint.pth", prefix="backbone")


def test_another_file_than_the_one_meant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(RAW, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert_holds(read_checkpoint(path, sha256=sha256.upper()), RAW)
    with pytest.raises(CheckpointError, match=f"checkpoint.pth is another file: its sha256 is {sha256}, expected was 0123"):
        read_checkpoint(path, sha256="0123" + sha256[4:])
