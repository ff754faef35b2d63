"""Key layouts: the published checkpoints' and this project's, and the variant that a state dict belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models import clean_state_dict
from torch import Tensor

from revbifpn.models.checkpoints.errors import CheckpointError
from revbifpn.models.variants import VARIANTS

# Within an MBConv: published name -> ours.
MBCONV_NAMES = {
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


def is_published_layout(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of the published checkpoints."""
    return any(key.startswith("rev_stack.") for key in state_dict)


def convert_checkpoint(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the published checkpoints' key layout into this project's; a dict already in it comes back unchanged.

    Args:
        state_dict: a plain state dict, as in ``revbifpn_s0.pth.tar``. The
            prefixes of DataParallel and torch.compile (``module.``, ``_orig_mod.``) are taken off.

    Returns:
        A new dict with the same tensors.

    Raises:
        CheckpointError: for a key that belongs to neither layout.
    """
    plain: dict[str, Tensor] = clean_state_dict(state_dict)
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
        tail = f"{MBCONV_NAMES[match['op']]}.{rest}"
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


def find_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a state dict in this project's layout belongs to, by its widths and depth; None if unclear."""
    neck = state_dict.get("neck.0.project.norm.weight")
    layers = [int(key.split(".")[1]) for key in state_dict if re.match(r"body\.\d+\.", key)]
    if neck is None or not layers:
        return None
    for variant in VARIANTS.values():
        if variant.neck_channels[0] == neck.shape[0] and 2 * variant.num_stages == max(layers):
            return variant.name
    return None
