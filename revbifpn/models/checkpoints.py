"""Reading checkpoints: files, the published key layout, and errors that say which variant a file belongs to."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revbifpn.models.blocks import MixChannels, adapt_stem_weight
from revbifpn.models.variants import VARIANTS

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")

# Within an MBConv: published name -> ours.
_MBCONV_NAMES = {
    "exp_conv": "expand",
    "dw_conv": "depthwise",
    "project_conv": "project",
    "se.se.1": "se.fc1",
    "se.se.3": "se.fc2",
}
_MBCONV = r"(?P<op>exp_conv|dw_conv|project_conv|se\.se\.1|se\.se\.3)\.(?P<rest>.+)"
_PATTERNS = {
    "block": re.compile(r"rev_stack\.(?P<n>\d+)\.rev_transform_(?P<stream>\d+)\.(?P<half>[fg])\.xform_0_1\." + _MBCONV),
    "down": re.compile(r"rev_stack\.(?P<n>\d+)\.f\.xform_(?P<a>\d+)_(?P<b>\d+)\." + _MBCONV),
    "up": re.compile(r"rev_stack\.(?P<n>\d+)\.g\.xform_(?P<a>\d+)_(?P<b>\d+)\.0\." + _MBCONV),
    "neck": re.compile(r"rev_stack\.recomp_op\.recomp_transform_(?P<stream>\d+)\." + _MBCONV),
    "step": re.compile(r"head\.pyramid_heads\.(?P<stream>\d+)\." + _MBCONV),
    "final": re.compile(r"head\.final_conv\.(?P<rest>.+)"),
    "fc": re.compile(r"head\.fc\.(?P<rest>.+)"),
}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; nothing was loaded."""


def is_published_layout(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the published checkpoints."""
    return any(key.startswith("rev_stack.") for key in state_dict)


def convert_checkpoint(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the published checkpoints' key layout into this project's; a dict already in it comes back unchanged.

    Args:
        state_dict: a plain state dict, as in ``revbifpn_s0.pth.tar``. Keys of DataParallel (``module.``) are accepted.

    Returns:
        A new dict with the same tensors.

    Raises:
        CheckpointError: for a key that belongs to neither layout.
    """
    plain = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if not is_published_layout(plain):
        return plain
    num_streams: dict[int, int] = {}  # of each published silo, from its down edges
    for key in plain:
        if match := _PATTERNS["down"].fullmatch(key):
            silo = int(match["n"])
            num_streams[silo] = max(num_streams.get(silo, 0), int(match["b"]) + 1)
    return {_convert_key(key, num_streams): value for key, value in plain.items()}


def _convert_key(key: str, num_streams: Mapping[int, int]) -> str:
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(key)
        if match is None:
            continue
        rest = match["rest"]
        if kind in ("final", "fc"):
            return f"head.{kind}.{rest}"
        tail = f"{_MBCONV_NAMES[match['op']]}.{rest}"
        if kind == "neck":
            return f"neck.{match['stream']}.{tail}"
        if kind == "step":
            return f"head.steps.{match['stream']}.{tail}"
        # Published: stem, then for each stage two RevBlock groups and a silo. Ours: stem, then StreamWise and RevSilo.
        stage, position = divmod(int(match["n"]) - 1, 3)
        if kind == "block":
            return f"body.{1 + 2 * stage}.chains.{match['stream']}.{position}.{match['half']}.{tail}"
        a, b = int(match["a"]), int(match["b"])
        if kind == "down":
            return f"body.{2 + 2 * stage}.down.{a}.{b}.{tail}"
        coarsest = num_streams[int(match["n"])] - 1  # published up edges count streams from the coarsest
        return f"body.{2 + 2 * stage}.up.{coarsest - a}.{coarsest - b}.mbconv.{tail}"
    raise CheckpointError(
        f"key {key!r} belongs neither to the published RevBiFPN layout (rev_stack..., head...) nor to this project's "
        "(body..., neck..., head...)"
    )


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict in this project's layout from a file.

    ``.safetensors`` files, and files of ``torch.save`` (never unpickled freely: ``weights_only=True``) that hold a state
    dict, or one under ``state_dict`` or ``model``; the published layout and detectors' ``backbone.`` keys are converted.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no checkpoint, damaged, or of another model.
    """
    path = Path(path)
    check_integrity(path)
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise CheckpointError(f"{path} needs the safetensors package: pip install safetensors") from error
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(
            f"{path} is no checkpoint that can be read safely ({type(error).__name__}: {reason}): "
            "expected a .safetensors file, or a state dict saved by torch.save; the file may be truncated, damaged, or hold "
            "other objects than tensors"
        ) from error
    return _state_dict(content, path)


def check_integrity(path: str | Path) -> None:
    """Check that a checkpoint file is there and as it was written.

    ``torch.save`` writes a zip archive with a checksum for each record; ``torch.load`` does not look at the checksums, so
    a flipped bit would load as a wrong weight.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated, or a record does not match its checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:  # safetensors, or torch's format before 1.6: their readers tell
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}; it may be truncated, by a disk that ran full for example"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: record {damaged!r} does not match its checksum")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict")
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise CheckpointError(f"{path} is no state dict: {_some(not_tensors)} hold no tensors")
    plain = {str(key).removeprefix("module."): value for key, value in content.items()}
    if any(key.startswith("backbone.") for key in plain):  # a detector's checkpoint
        plain = {key.removeprefix("backbone."): value for key, value in plain.items() if key.startswith("backbone.")}
    return convert_checkpoint(plain)


def load_checkpoint(model: nn.Module, path: str | Path, ignore: tuple[str, ...] = ()) -> list[str]:
    """Load a checkpoint into a RevBiFPN model. Nothing is loaded unless everything fits.

    The stem is adapted to the model's image channels (:func:`adapt_stem`).

    Args:
        model: a :class:`.RevBiFPN`, or a :class:`.RevBiFPNPyramid` with ``ignore=("head.",)``.
        path: see :func:`read_checkpoint`.
        ignore: prefixes of keys that may be left out.

    Returns:
        The keys that were left out.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`read_checkpoint` and :func:`check_state_dict`.
    """
    state_dict = read_checkpoint(path)
    left_out = [key for key in state_dict if key.startswith(ignore)] if ignore else []
    kept = {key: value for key, value in state_dict.items() if key not in set(left_out)}
    kept = adapt_stem(kept, model)
    check_state_dict(model, kept, str(path))
    model.load_state_dict(kept)
    return left_out


def adapt_stem(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit the stem of a state dict in this project's layout to the image channels of ``model``.

    A model without stem weights was trained on images of at most three channels (or as many as its stem has slots): what a
    model with more channels then needs is :class:`.MixChannels`'s initial weight. Another stem's columns are repeated.

    Returns:
        A new dict with the same tensors, but for the stem's.

    Raises:
        CheckpointError: if the state dict has stem weights and ``model``, whose image has few channels, has none.
    """
    adapted = dict(state_dict)
    stem, weight = getattr(model, "stem", None), adapted.get("stem.weight")
    if isinstance(stem, MixChannels):
        if weight is None:
            adapted["stem.weight"] = MixChannels(stem.in_channels, stem.out_channels).weight.detach()
        elif weight.ndim == 4 and weight.shape[1] != stem.in_channels:
            adapted["stem.weight"] = adapt_stem_weight(weight, stem.in_channels)
    elif weight is not None:
        raise CheckpointError(
            f"the checkpoint is of a model for images of {weight.shape[1]} channels, whose stem has weights; the model takes "
            f"{getattr(model, 'in_chans', None)} and has none: create it with in_chans={weight.shape[1]}"
        )
    return adapted


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has exactly the model's keys and shapes.

    Raises:
        CheckpointError: naming the keys that miss, are too many or have another shape, and the variant that would fit.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    wrong = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state_dict and state_dict[key].shape != expected[key].shape
    ]
    if not (missing or unexpected or wrong):
        return
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("tensors of another shape", wrong))
        if keys
    ]
    mine = getattr(getattr(model, "variant", None), "name", None)
    theirs = find_variant(state_dict)
    hint = (
        f"; it is a checkpoint of RevBiFPN-{theirs}, the model is RevBiFPN-{mine}"
        if mine and theirs not in (None, mine)
        else ""
    )
    raise CheckpointError(f"{source} does not fit the model{hint}: {'; '.join(problems)}. Nothing was loaded.")


def find_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """The variant that a state dict in this project's layout belongs to, by its widths and depth; None if unclear."""
    neck = state_dict.get("neck.0.project.norm.weight")
    layers = [int(key.split(".")[1]) for key in state_dict if re.match(r"body\.\d+\.", key)]
    if neck is None or not layers:
        return None
    for variant in VARIANTS.values():
        if variant.neck_channels[0] == neck.shape[0] and 2 * variant.num_stages == max(layers):
            return variant.name
    return None


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items) - most} more)" if len(items) > most else "")
