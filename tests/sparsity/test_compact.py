"""Compact checkpoints: their size, what they keep, and everyone who reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from revbifpn import CheckpointError, load_checkpoint
from revbifpn.models import RevBiFPN, RevBiFPNPyramid
from revbifpn.sparsity.compact import expand, read_masks, save_compact, sizes
from revbifpn.sparsity.prune import prune
from tests.sparsity.networks import TINY, small_net, tiny_revbifpn


def test_a_pruned_revbifpn_is_smaller_and_loads_everywhere(tmp_path: Path) -> None:
    model = tiny_revbifpn()
    masks = prune(model, None, 0.75, method="magnitude").masks
    path = tmp_path / "pruned.safetensors"
    found = save_compact(model.state_dict(), path, masks)
    assert set(masks) <= set(found.packed)
    state = model.state_dict()
    dropped = sum(int((~masks.get(name, state[name] != 0)).sum()) for name in found.packed)
    packed = sum(state[name].numel() for name in found.packed)
    others = len(found.packed)
    # Four bytes less for each dropped number, a bit more for each of the packed tensors, and their shapes.
    expected = found.dense - 4 * dropped + packed / 8
    assert abs(found.compact - expected) <= others * (1 + 8 * 4)
    header = path.stat().st_size - found.compact
    assert 0 < header < 200 * (len(state) + 2 * others)

    fresh = RevBiFPN(TINY, num_classes=5)
    load_checkpoint(fresh, path)
    assert all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())
    pyramid = RevBiFPNPyramid(TINY)
    load_checkpoint(pyramid, path, ignore=("head.",))
    assert torch.equal(pyramid.state_dict()["neck.0.project.conv.weight"], state["neck.0.project.conv.weight"])
    kept = read_masks(path)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())


def test_timm_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0")
    prune(model, None, 0.6, method="magnitude")
    path = tmp_path / "pruned.safetensors"
    save_compact(model.state_dict(), path)
    again = timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


def test_other_programs_read_it_expanded(tmp_path: Path) -> None:
    model = small_net()
    prune(model, None, 0.5, method="magnitude")
    save_compact(model.state_dict(), tmp_path / "compact.safetensors")
    expand(tmp_path / "compact.safetensors", tmp_path / "dense.safetensors")
    small_net().load_state_dict(load_file(tmp_path / "dense.safetensors"))
    torch.testing.assert_close(load_file(tmp_path / "dense.safetensors"), dict(model.state_dict()), rtol=0, atol=0)
    assert read_masks(tmp_path / "dense.safetensors") == {}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 32), (torch.float16, 16)])
def test_only_what_gets_smaller_is_packed(dtype: torch.dtype, limit: int) -> None:
    numbers = 64 * limit
    for zeros, packed in ((numbers // limit + 10, True), (numbers // limit - 1, False)):
        tensor = torch.ones(numbers, dtype=dtype)
        tensor[:zeros] = 0
        assert (sizes({"w": tensor}).packed == ("w",)) == packed
    assert sizes({"steps": torch.zeros(1000, dtype=torch.int64), "one": torch.tensor(0.0)}).packed == ()


def test_kept_zeros_stay_kept_and_nan_and_negative_zero_are_read(tmp_path: Path) -> None:
    weight = torch.tensor([[0.0, 1.0, -0.0, torch.nan], [torch.inf, -0.0, 0.0, 2.0]]).repeat(4, 4)
    mask = weight != 0
    mask[0, 0] = True
    save_compact({"w": weight}, tmp_path / "w.safetensors", {"w": mask})
    assert torch.equal(read_masks(tmp_path / "w.safetensors")["w"], mask)
    save_compact({"w": weight}, tmp_path / "v.safetensors")


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    state, path = {"w": torch.ones(4, 4)}, tmp_path / "w.safetensors"
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 0] = False
    with pytest.raises(ValueError, match="zeros and the masks disagree: w has 1 weights that its mask drops"):
        save_compact(state, path, {"w": mask})
    for masks, message in (({"v": mask}, "no v"), ({"w": mask[:2]}, "another model"), ({"w": mask.float()}, "torch.bool")):
        with pytest.raises(ValueError, match=message):
            save_compact(state, path, masks)
    with pytest.raises(CheckpointError, match="must end in .safetensors"):
        save_compact(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="has 'w.values', a name that the compact form needs"):
        save_compact({**state, "w.values": torch.ones(1)}, path)
    assert list(tmp_path.iterdir()) == []
    save_compact(state, path)
    with pytest.raises(CheckpointError, match="exists: choose another name"):
        save_compact(state, path)
    save_compact(state, path, overwrite=True)
    with pytest.raises(CheckpointError, match="is no .safetensors file"):
        read_masks(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError):
        expand(tmp_path / "none.safetensors", tmp_path / "x.safetensors")
