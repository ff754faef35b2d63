"""The compact form of a tensor with many zeros: a bit for each number, and the numbers that are kept.

Of a tensor ``NAME`` a compact ``.safetensors`` file holds three:

=================  ===================================================================================================
``NAME.values``    the kept numbers, in the tensor's dtype and order
``NAME.bitmask``   uint8, ``ceil(numbers / 8)`` bytes: bit ``i % 8`` of byte ``i // 8``, lowest first, is number i's
``NAME.shape``     int64
=================  ===================================================================================================

The entry ``revbifpn_compact`` of the file's metadata is the version of the form. Other tensors are there as they are. Of n
numbers of b bytes, of which a fraction s is dropped, that is ``n / 8 + n b (1 - s)`` bytes: less than dense where s is above
``1 / (8 b)``, 1/32 in float32 and 1/16 in float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from revbifpn.models.checkpoints.errors import CheckpointError, some

METADATA = "revbifpn_compact"
VERSION = "1"
VALUES, BITMASK, SHAPE = ".values", ".bitmask", ".shape"
_BITS = tuple(1 << bit for bit in range(8))


def compact_size(kept: int, numbers: int, dimensions: int, itemsize: int) -> int:
    """Bytes of a tensor in the compact form, without the names in the file's header."""
    return kept * itemsize + -(-numbers // 8) + 8 * dimensions


def pack(name: str, tensor: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Return the three tensors of the compact form; ``kept`` is a bool tensor of the same shape."""
    tensor, kept = tensor.detach().cpu().contiguous(), kept.cpu()
    bits = torch.nn.functional.pad(kept.flatten().to(torch.uint8), (0, -kept.numel() % 8)).view(-1, 8)
    bitmask = (bits * torch.tensor(_BITS, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    shape = torch.tensor(tensor.shape, dtype=torch.int64)
    return {name + VALUES: tensor[kept], name + BITMASK: bitmask, name + SHAPE: shape}


def unpack(content: Mapping[str, Tensor], metadata: Mapping[str, str], source: object) -> dict[str, Tensor]:
    """Return what a file holds with its compact tensors made dense, zeros where nothing was kept; others as they are.

    Args:
        content, metadata: of a ``.safetensors`` file. Without the entry :data:`METADATA` nothing is done.
        source: what the file is called in messages.

    Raises:
        CheckpointError: for another version, a tensor of which a part is missing, or parts that do not fit together.
    """
    if METADATA not in metadata:
        return dict(content)
    dense: dict[str, Tensor] = {}
    packed = _packed(content, metadata, source)
    for key, tensor in content.items():
        name, _, _ = key.rpartition(".")
        if key == name + VALUES and name in packed:
            kept = packed[name]
            full = torch.zeros(kept.shape, dtype=tensor.dtype)
            full[kept] = tensor
            dense[name] = full
        elif name not in packed or key not in (name + BITMASK, name + SHAPE):
            dense[key] = tensor
    return dense


def masks_of(content: Mapping[str, Tensor], metadata: Mapping[str, str], source: object) -> dict[str, Tensor]:
    """Return the masks of a file's compact tensors, True where a number is kept; arguments and errors as :func:`unpack`'s."""
    return _packed(content, metadata, source) if METADATA in metadata else {}


def _packed(content: Mapping[str, Tensor], metadata: Mapping[str, str], source: object) -> dict[str, Tensor]:
    version = metadata[METADATA]
    if version != VERSION:
        raise CheckpointError(f"{source} has version {version!r} of the compact form, and this reads version {VERSION!r}")
    masks: dict[str, Tensor] = {}
    for key, bitmask in content.items():
        name = key.removesuffix(BITMASK)
        if name == key:
            continue
        if missing := [name + part for part in (VALUES, SHAPE) if name + part not in content]:
            raise CheckpointError(f"{source} is damaged: it has {key} without {some(missing)}")
        shape, values = content[name + SHAPE].tolist(), content[name + VALUES]
        numbers = math.prod(shape)
        if bitmask.dtype != torch.uint8 or bitmask.shape != (-(-numbers // 8),):
            raise CheckpointError(
                f"{source} is damaged: {key} is {bitmask.dtype} {tuple(bitmask.shape)}, expected a bit for each of {numbers} "
                "numbers"
            )
        bits = bitmask[:, None].bitwise_and(torch.tensor(_BITS, dtype=torch.uint8)).ne(0).flatten()
        if int(bits.sum()) != values.numel() or bool(bits[numbers:].any()):
            raise CheckpointError(
                f"{source} is damaged: {key} keeps {int(bits.sum())} of {numbers} numbers, and there are {values.numel()}"
            )
        masks[name] = bits[:numbers].view(shape)
    return masks
