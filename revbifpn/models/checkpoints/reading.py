"""Reading a checkpoint: which of a file's weights are taken, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor

from revbifpn.models.checkpoints.errors import CheckpointError, some
from revbifpn.models.checkpoints.fetching import locate
from revbifpn.models.checkpoints.files import read_file, sha256_of
from revbifpn.models.checkpoints.layout import convert_checkpoint

_RAW = ("state_dict", "model")
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """The weights that were taken from a file.

    Attributes:
        source: what the file was called.
        state_dict: in the layout that the file has.
        choice: which weights these are, in words; empty where the file has but one set of them.
    """

    source: str
    state_dict: dict[str, Tensor]
    choice: str = ""


def read(
    source: str | Path,
    *,
    prefix: str = "",
    ema: bool = True,
    sha256: str | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Checkpoint:
    """Read the weights of a file.

    It may be a ``.safetensors`` file, or one of ``torch.save`` that holds a state dict or has one inside, as the training
    scripts of timm, torchvision and MMEngine write them. Wrappers' prefixes (``module.``, ``_orig_mod.``) and a detector's
    ``backbone.`` are taken off.

    Args:
        source: a file, or an address (see :func:`.fetch`).
        prefix: take the keys that begin with it, and take it off.
        ema: where the file has weights and their exponential moving average: True takes the average, as timm does, False
            the raw weights.
        sha256: of the whole file; another file is refused.
        folder, progress: of a download.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no checkpoint, another file, damaged, or has not what is asked for.
    """
    path = locate(source, folder, progress)
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise CheckpointError(f"{path} is another file: its sha256 is {found}, expected was {sha256}")
    content, choice = _choose(read_file(path), ema, path)
    return Checkpoint(str(source), _with_prefix(_state_dict(content, path), prefix, path), choice)


def read_checkpoint(source: str | Path, *, ema: bool = True, sha256: str | None = None) -> dict[str, Tensor]:
    """Read the state dict of a file, in this project's key layout; the arguments and errors are those of :func:`read`."""
    return convert_checkpoint(read(source, ema=ema, sha256=sha256).state_dict)


def _choose(content: Any, ema: bool, path: Path) -> tuple[Any, str]:
    """Return what the file has, or the one of its two sets of weights that was asked for and the name of that choice."""
    if not isinstance(content, Mapping):
        return content, ""
    named = {key: content[key] for key in (*_RAW, *_EMA) if isinstance(content.get(key), Mapping)}
    raw = next((named[key] for key in _RAW if key in named), None)
    averaged = next((_averaged(named[key]) for key in _EMA if key in named), None)
    if raw is not None and "ema_state_dict" in named and _is_mmengines(content):
        # MMEngine's EMAHook swaps the two when it saves, so that `state_dict` is what should be used.
        raw, averaged = averaged, raw
    if raw is None and averaged is None:
        return content, ""
    if averaged is None:
        return raw, ""
    if raw is None:
        if not ema:
            raise CheckpointError(f"{path} holds EMA weights alone: leave ema=False out")
        return averaged, ""
    return (averaged, "its EMA weights, ema=False takes the raw ones") if ema else (raw, "its raw weights, not the EMA ones")


def _is_mmengines(content: Mapping[str, Any]) -> bool:
    meta = content.get("meta")
    return isinstance(meta, Mapping) and "mmengine_version" in meta


def _averaged(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what an averaging wrapper keeps beside its ``module``, the number of its updates."""
    wrapped = {key: value for key, value in content.items() if str(key).startswith("module.")}
    return wrapped or content


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict")
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise CheckpointError(f"{path} is no state dict: {some(not_tensors)} hold no tensors")
    odd = [str(key) for key, value in content.items() if not _is_plain(value)]
    if odd:
        raise CheckpointError(f"{path} has sparse, quantized or complex tensors, which no weights are: {some(odd)}")
    cleaned: dict[str, Tensor] = clean_state_dict({str(key): value for key, value in content.items()})
    return cleaned


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()


def _with_prefix(state_dict: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """Return the keys below ``prefix``, or without one those of a detector's backbone, if it is a detector's checkpoint."""
    start = f"{prefix.removesuffix('.')}." if prefix else "backbone."
    below = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
    if prefix and not below:
        raise CheckpointError(f"{path} has no keys that begin with the prefix {start!r}, but {some(list(state_dict))}")
    return below or state_dict
