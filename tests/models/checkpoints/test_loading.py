"""Checkpoints into models: the published layout, safe reading, and clear refusals that change nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from revbifpn import CheckpointError, RevBiFPN, RevBiFPNPyramid, convert_checkpoint, load_checkpoint
from revbifpn.models import VARIANTS, read_checkpoint
from revbifpn.models.checkpoints import find_variant
from tests.oracle import reference_shapes, reference_state_dict


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["s0", "s1", "s2", "s3"])
def test_published_keys_and_shapes_map_one_to_one(name: str) -> None:
    shapes = reference_shapes(f"revbifpn_{name}")
    converted = convert_checkpoint({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    with torch.device("meta"):
        own = RevBiFPN(name).state_dict()
    assert {key: tuple(v.shape) for key, v in converted.items()} == {key: tuple(v.shape) for key, v in own.items()}


def test_own_layout_and_dataparallel_prefix_pass() -> None:
    own = RevBiFPN("s0").state_dict()
    assert list(convert_checkpoint(own)) == list(own)
    assert list(convert_checkpoint({f"module.{k}": v for k, v in own.items()})) == list(own)


def test_key_of_neither_layout_is_named() -> None:
    bad = {**reference_state_dict("revbifpn_s0"), "rev_stack.1.something.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"key 'rev_stack.1.something.weight' belongs neither"):
        convert_checkpoint(bad)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("published", [False, True])
def test_load_from_file(tmp_path: Path, published: bool, wrapper: str | None) -> None:
    source = RevBiFPN("s0")
    source.load_state_dict(convert_checkpoint(reference_state_dict("revbifpn_s0")))
    content = reference_state_dict("revbifpn_s0") if published else source.state_dict()
    path = tmp_path / "revbifpn_s0.pth.tar"
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    model = RevBiFPN("s0")
    assert load_checkpoint(model, path) == []
    assert_unchanged(model, source.state_dict())
    pyramid = RevBiFPNPyramid("s0")
    left_out = load_checkpoint(pyramid, path, ignore=("head.",))
    assert set(left_out) == {key for key in source.state_dict() if key.startswith("head.")}


def test_safetensors_round_trip(tmp_path: Path) -> None:
    source, model = RevBiFPN("s0"), RevBiFPN("s0")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert_unchanged(model, source.state_dict())


def test_checkpoint_of_another_variant_is_named(tmp_path: Path) -> None:
    torch.save(RevBiFPN("s1").state_dict(), tmp_path / "s1.pth")
    model = RevBiFPN("s0")
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="it is a checkpoint of RevBiFPN-s1, the model is RevBiFPN-s0.*another shape"):
        load_checkpoint(model, tmp_path / "s1.pth")
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognised(name: str) -> None:
    with torch.device("meta"):
        assert find_variant(RevBiFPN(name).state_dict()) == name


def test_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    model = RevBiFPN("s0")
    before = snapshot(model)
    state = {k: v + 1 for k, v in model.state_dict().items() if not k.startswith("neck.0.project")}
    state["neck.0.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(
        CheckpointError, match=r"missing keys: neck.0.project.*1 unexpected keys: neck.0.extra.*Nothing was loaded"
    ):
        load_checkpoint(model, tmp_path / "odd.pth")
    assert_unchanged(model, before)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("kind", ["text", "pickle", "truncated", "list", "not_tensors", "safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind in ("text", "safetensors"):
        path.write_text("not a checkpoint")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "truncated":
        torch.save(RevBiFPN("s0").state_dict(), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    else:
        torch.save({"a": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint not found: .*nowhere.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")
