"""What the README says of memory, as limits: predicted on fake tensors, so the same on every machine."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from benchmarks.common import activation_bytes, peak_alone
from benchmarks.networks import Network, image_size_of
from revbifpn.models import VARIANTS

#: MB a sample at most: activations of a training step, float32, at the model's own image size.
#: (model, mode, batch, device) -> limit.
LIMITS = {
    ("revbifpn_s0", "reversible", 8, "cpu"): 3.1,
    ("revbifpn_s0", "reversible", 8, "cuda"): 4.0,  # chunks are larger there, and so few images are one
    ("revbifpn_s0", "stored", 8, "cpu"): 45.0,
    ("revbifpn_s3", "reversible", 4, "cpu"): 13.6,
    ("revbifpn_s3", "reversible", 4, "cuda"): 18.5,
    ("revbifpn_s6", "reversible", 16, "cuda"): 44.0,
}
#: S6 takes at most this part of what EfficientNet-B7 takes with timm's checkpointing; both are equally accurate.
PART_OF_CHECKPOINTED_B7 = 0.105  # 43.9 of 426 MB


@functools.cache  # S6's is asked for twice, and takes its time
def megabytes(name: str, mode: str, batch: int, device: str) -> float:
    network = Network(name, mode, batch, image_size_of(name))
    return activation_bytes(*network.on("meta"), device, "predict") / batch / 1e6


@pytest.mark.parametrize(("name", "mode", "batch", "device"), LIMITS)
def test_activations_of_a_sample(name: str, mode: str, batch: int, device: str) -> None:
    assert megabytes(name, mode, batch, device) <= LIMITS[name, mode, batch, device]


def test_a_large_model_beside_a_checkpointed_one_of_equal_accuracy() -> None:
    ours, theirs = (
        megabytes(name, mode, 16, "cuda")
        for name, mode in (("revbifpn_s6", "reversible"), ("efficientnet_b7", "checkpointing"))
    )
    assert ours <= PART_OF_CHECKPOINTED_B7 * theirs


@functools.cache
def of_depth(stages: int) -> tuple[int, int]:
    """Bytes of activations of S0 with so many extension stages, and of its buffers."""
    variant = replace(VARIANTS["s0"], num_ext_layers=stages)
    model, images = Network("revbifpn_s0", "reversible", 2, 64).on("meta", variant=variant, num_classes=10)
    return peak_alone(model, images, method="predict"), sum(buffer.nbytes for buffer in model.buffers())


@pytest.mark.parametrize("stages", [8, 32])
def test_depth_costs_nothing_beyond_parameters(stages: int) -> None:
    """Many extension stages take what 2 take, but for the two vectors of batch statistics that each norm may keep."""
    (shallow, few), (deep, many) = of_depth(2), of_depth(stages)
    assert deep - shallow <= many - few
