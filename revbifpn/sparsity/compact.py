"""Compact checkpoints: files of pruned networks in which a zero costs a bit.

The form is that of :mod:`revbifpn.models.checkpoints.compact`, and everything of this project that reads weights reads it.
For other programs :func:`expand` writes the dense file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from revbifpn.models.checkpoints import CheckpointError, check_integrity
from revbifpn.models.checkpoints.compact import METADATA, VERSION, compact_size, masks_of, pack
from revbifpn.models.checkpoints.files import read_file, read_safetensors
from revbifpn.sparsity.masks import MaskError, check_masks, check_zeros


@dataclass(frozen=True)
class Sizes:
    """Bytes of the tensors of a state dict, without a file's header.

    Attributes:
        dense: as it is.
        compact: with those tensors in the compact form that are smaller in it.
        packed: the names of those.
    """

    dense: int
    compact: int
    packed: tuple[str, ...]


def sizes(state_dict: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Sizes:
    """Compute what :func:`save_compact` would write."""
    masks = masks or {}
    dense = compact = 0
    packed = []
    for name, tensor in state_dict.items():
        dense += tensor.nbytes
        kept = int(_kept(tensor, masks.get(name)).sum()) if tensor.is_floating_point() else tensor.numel()
        size = compact_size(kept, tensor.numel(), tensor.ndim, tensor.itemsize)
        if tensor.is_floating_point() and tensor.ndim and (size < tensor.nbytes or name in masks):
            packed.append(name)
            compact += size
        else:
            compact += tensor.nbytes
    return Sizes(dense, compact, tuple(packed))


def save_compact(
    state_dict: Mapping[str, Tensor], path: str | Path, masks: Mapping[str, Tensor] | None = None, overwrite: bool = False
) -> Sizes:
    """Write a state dict into a compact ``.safetensors`` file, read it back, compare, and only then give it its name.

    Args:
        state_dict: any model's.
        masks: of its weights, True where one is kept. They are stored with the weights, so that a kept weight that happens to
            be zero stays kept (:func:`read_masks`). Other tensors are compact where that is smaller, and there every number
            but zero is kept. Zeros are read back as +0.
        overwrite: replace a file that exists.

    Returns:
        The bytes, dense and compact.

    Raises:
        MaskError: for masks of another model, or a weight that its mask drops and that is not zero.
        CheckpointError: for a name that does not end in .safetensors, a file that exists, or one that was not written right.
    """
    path, masks = Path(path), dict(masks or {})
    _check_target(path, overwrite)
    if unknown := [name for name in masks if name not in state_dict]:
        raise MaskError(f"masks of another model: the state dict has no {unknown[0]}")
    weights = {name: state_dict[name] for name in masks}
    check_masks(weights, masks)
    check_zeros(weights, masks)
    taken = [key for key in state_dict if key.endswith((".values", ".bitmask", ".shape"))]
    if taken:
        raise CheckpointError(f"the state dict has {taken[0]!r}, a name that the compact form needs for itself")
    result = sizes(state_dict, masks)
    content: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        if name in result.packed:
            content |= pack(name, tensor, _kept(tensor, masks.get(name)))
        else:
            content[name] = tensor.clone()  # safetensors takes no two tensors of one memory
    _write(content, path, {METADATA: VERSION}, state_dict)
    return result


def expand(source: str | Path, path: str | Path, overwrite: bool = False) -> None:
    """Write the tensors of a compact ``.safetensors`` file into a dense one, which every program reads.

    Raises:
        FileNotFoundError, CheckpointError: if the source cannot be read, or the target not be written.
    """
    source, path = Path(source), Path(path)
    if source.suffix != ".safetensors":
        raise CheckpointError(f"{source} is no .safetensors file, so it is not compact")
    _check_target(path, overwrite)
    content = read_file(source)
    _write(content, path, {}, content)


def read_masks(path: str | Path) -> dict[str, Tensor]:
    """Return the masks that a compact file holds, True where a weight is kept; empty for a dense ``.safetensors`` file.

    Raises:
        FileNotFoundError, CheckpointError: if there is no such file, or it is damaged or no ``.safetensors`` file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no .safetensors file, and holds no masks")
    check_integrity(path)
    return masks_of(*read_safetensors(path), path)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists: choose another name, or replace it with overwrite=True (--overwrite)")


def _kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor.detach() != 0 if mask is None else mask


def _write(content: dict[str, Tensor], path: Path, metadata: dict[str, str], expected: Mapping[str, Tensor]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs the safetensors package: pip install safetensors") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        save_file(content, draft, metadata={"format": "pt", **metadata})
        again = read_file(draft)
        wrong = [name for name, tensor in expected.items() if name not in again or not _same(again[name], tensor.cpu())]
        if wrong or len(again) != len(expected):
            raise CheckpointError(f"{path} was not written as it should be: {(wrong or sorted(again))[:3]} differ")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
