"""The compact form of tensors: what is read is what was packed, and damaged parts are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from revbifpn.models.checkpoints import CheckpointError, read
from revbifpn.models.checkpoints.compact import METADATA, VERSION, compact_size, masks_of, pack, unpack

MARK = {METADATA: VERSION}


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    kept = torch.rand(shape, generator=generator) > 0.6
    return (torch.randn(shape, generator=generator) * kept).to(dtype), kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (8,), (9, 7), (5, 3, 3, 3)])
def test_packing_and_unpacking(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor, kept = sparse(*shape, dtype=dtype)
    packed = pack("a.weight", tensor, kept)
    size = sum(part.nbytes for part in packed.values())
    assert size == compact_size(int(kept.sum()), tensor.numel(), tensor.ndim, tensor.itemsize)
    content = {**packed, "b": torch.ones(3)}
    dense = unpack(content, MARK, "file")
    assert list(dense) == ["a.weight", "b"]
    assert dense["a.weight"].dtype == dtype
    assert torch.equal(dense["a.weight"], tensor)
    assert torch.equal(masks_of(content, MARK, "file")["a.weight"], kept)
    assert unpack(content, {}, "file").keys() == content.keys()  # without the mark they are tensors like others


def test_bits_lie_as_the_format_says() -> None:
    kept = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    packed = pack("w", torch.arange(10.0), kept)
    assert packed["w.bitmask"].tolist() == [0b1001, 0b10]
    assert packed["w.values"].tolist() == [0, 3, 9]  # a kept zero is kept
    assert packed["w.shape"].tolist() == [10]


def test_the_one_path_for_weights_reads_it(tmp_path: Path) -> None:
    tensor, kept = sparse(6, 4, 3, 3)
    path = tmp_path / "weights.safetensors"
    save_file({**pack("backbone.a.weight", tensor, kept), "backbone.b": torch.ones(3)}, path, metadata=MARK)
    state_dict = read(path).state_dict
    assert sorted(state_dict) == ["a.weight", "b"]
    assert torch.equal(state_dict["a.weight"], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w.values": None}, "is damaged: it has w.bitmask without w.values"),
        ({"w.shape": None}, "is damaged: it has w.bitmask without w.shape"),
        ({"w.values": torch.ones(3)}, "w.bitmask keeps 2 of 10 numbers, and there are 3"),
        ({"w.shape": torch.tensor([30])}, r"w.bitmask is torch.uint8 \(2,\), expected a bit for each of 30 numbers"),
        ({"w.bitmask": torch.tensor([1, 128], dtype=torch.uint8)}, "w.bitmask keeps 2 of 10 numbers"),  # beyond the end
    ],
)
def test_damaged_parts_are_told(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    kept = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    content = {**pack("w", torch.arange(10.0), kept), **change}
    path = tmp_path / "weights.safetensors"
    save_file({key: value for key, value in content.items() if value is not None}, path, metadata=MARK)
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_other_versions_are_refused() -> None:
    with pytest.raises(CheckpointError, match="file has version '2' of the compact form, and this reads version '1'"):
        unpack({}, {METADATA: "2"}, "file")
