"""Expected values of the published architecture, and the reproducible weights and images that they were made with.

``data/expected.safetensors.xz`` holds outputs computed in stored mode and float32; ``data/reference_keys.json.xz`` the
published checkpoints' keys and shapes (S0 to S3).
"""

from __future__ import annotations

import json
import lzma
import math
import zlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

DATA = Path(__file__).parent / "data"


@cache
def expected() -> dict[str, Tensor]:
    return load(lzma.decompress((DATA / "expected.safetensors.xz").read_bytes()))


@cache
def reference_shapes(model: str) -> dict[str, tuple[int, ...]]:
    keys = json.loads(lzma.decompress((DATA / "reference_keys.json.xz").read_bytes()))
    return {key: tuple(shape) for key, shape in keys[model].items()}


def reference_state_dict(model: str) -> dict[str, Tensor]:
    """A state dict in the published layout; every tensor depends on its key and shape alone."""
    return {key: _fill(key, shape) for key, shape in reference_shapes(model).items()}


def _fill(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith(("running_var", "norm.weight")):
        return 0.5 + torch.rand(shape, generator=generator)
    scale = 0.1 if key.endswith(("running_mean", "bias")) else 1 / math.sqrt(math.prod(shape[1:]))
    return scale * torch.randn(shape, generator=generator)


def image(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
