"""Back to the published checkpoints' key layout: the inverse of :func:`.convert_checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from revbifpn.models.checkpoints import CheckpointError, is_published_layout
from revbifpn.models.checkpoints.layout import MBCONV_NAMES

_MBCONV_NAMES = {ours: published for published, ours in MBCONV_NAMES.items()}
_MBCONV = r"(?P<op>expand|depthwise|project|se\.fc1|se\.fc2)\.(?P<rest>.+)"
_PATTERNS = {
    "block": re.compile(r"body\.(?P<n>\d+)\.chains\.(?P<stream>\d+)\.(?P<depth>\d+)\.(?P<half>[fg])\." + _MBCONV),
    "down": re.compile(r"body\.(?P<n>\d+)\.down\.(?P<i>\d+)\.(?P<j>\d+)\." + _MBCONV),
    "up": re.compile(r"body\.(?P<n>\d+)\.up\.(?P<i>\d+)\.(?P<j>\d+)\.mbconv\." + _MBCONV),
    "neck": re.compile(r"neck\.(?P<stream>\d+)\." + _MBCONV),
    "step": re.compile(r"head\.steps\.(?P<stream>\d+)\." + _MBCONV),
    "final": re.compile(r"head\.final\.(?P<rest>.+)"),
    "fc": re.compile(r"head\.fc\.(?P<rest>.+)"),
}


def to_published_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn this project's key layout into that of the published checkpoints; a dict already in it comes back unchanged.

    Returns:
        A new dict with the same tensors.

    Raises:
        CheckpointError: for keys that the published layout has no place for, such as the stem's weights of a model for images
            with many channels.
    """
    if is_published_layout(state_dict):
        return dict(state_dict)
    coarsest: dict[str, int] = {}  # stream of each silo, from its down edges
    for key in state_dict:
        if match := _PATTERNS["down"].fullmatch(key):
            coarsest[match["n"]] = max(coarsest.get(match["n"], 0), int(match["j"]))
    return {_publish_key(key, coarsest): value for key, value in state_dict.items()}


def _publish_key(key: str, coarsest: Mapping[str, int]) -> str:
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(key)
        if match is None:
            continue
        rest = match["rest"]
        if kind in ("final", "fc"):
            return f"head.{'final_conv' if kind == 'final' else 'fc'}.{rest}"
        tail = f"{_MBCONV_NAMES[match['op']]}.{rest}"
        if kind == "neck":
            return f"rev_stack.recomp_op.recomp_transform_{match['stream']}.{tail}"
        if kind == "step":
            return f"head.pyramid_heads.{match['stream']}.{tail}"
        # Ours: stem, then for each stage StreamWise and RevSilo. Published: stem, then two RevBlock groups and a silo.
        stage = (int(match["n"]) - 1) // 2
        if kind == "block":
            group = 3 * stage + 1 + int(match["depth"])
            return f"rev_stack.{group}.rev_transform_{match['stream']}.{match['half']}.xform_0_1.{tail}"
        i, j = int(match["i"]), int(match["j"])
        if kind == "down":
            return f"rev_stack.{3 * stage + 3}.f.xform_{i}_{j}.{tail}"
        last = coarsest.get(match["n"], -1)  # published up edges count streams from the coarsest
        if i <= last:
            return f"rev_stack.{3 * stage + 3}.g.xform_{last - i}_{last - j}.0.{tail}"
    raise CheckpointError(
        f"the published layout has no place for {key!r}: it is for whole networks, and for images of few channels"
    )
