"""How training memory grows with the batch, the image and the depth, and how it should.

*Memory* here is the peak of forward and backward above weights and images in a step that lets every parameter's gradient go as
soon as it is there: activations and what is computed with them. MB are 10**6 bytes.

Expected: proportional to batch and pixels in every mode. A further extension stage costs an ordinary network what autograd
saves of it, checkpointing its input (one pyramid), a budget its fraction of stored mode's cost, and reversible mode nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.common import peak_alone, table
from benchmarks.networks import BUDGETS, Network, NotThereError
from benchmarks.plain import PlainRevBiFPN
from revbifpn.models import VARIANTS, Variant
from revbifpn.models.variants import STRIDES

#: Few, so that the linear layer's gradient is small beside the activations.
CLASSES = 10
NAMES = {"batch": "batch", "image_size": "image side", "stages": "extension stages"}
MODES = ("plain", "plain checkpointing", "stored", "budget 0.25", "reversible")


@dataclass(frozen=True)
class Sweep:
    """One quantity changes, the others stay.

    Attributes:
        quantity: ``"batch"``, ``"image_size"`` (side in pixels) or ``"stages"`` (extension stages).
        values: what it takes, in rising order.
        batch, image_size, stages: where they are not what changes.
    """

    quantity: str
    values: tuple[int, ...]
    batch: int = 2
    image_size: int = 224
    stages: int = 2

    def at(self, value: int, mode: str) -> tuple[Variant, Network]:
        """The variant and the network at one of the values."""
        settings = {"batch": self.batch, "image_size": self.image_size, "stages": self.stages} | {self.quantity: value}
        variant = replace(VARIANTS["s0"], num_ext_layers=settings["stages"])
        return variant, Network("revbifpn_s0", mode, settings["batch"], settings["image_size"])


SWEEPS = (
    Sweep("batch", (1, 2, 4, 8, 16)),
    Sweep("image_size", (128, 192, 256, 320, 448)),
    Sweep("stages", (2, 8, 32), image_size=128),
)
TOY_SWEEPS = (
    Sweep("batch", (2, 4), image_size=32, stages=0),
    Sweep("image_size", (32, 64), stages=0),
    Sweep("stages", (0, 1), image_size=32),
)


def measure_sweep(sweep: Sweep, modes: Iterable[str], progress: Callable[[str], None]) -> dict[str, Any]:
    """Bytes in some of :data:`MODES` at every value, from the CPU allocator, and the growth that is expected."""
    peaks: dict[str, list[int]] = {}
    for mode in modes:
        try:
            for value in sweep.values:
                variant, network = sweep.at(value, mode)
                model, images = network.build(variant=variant, num_classes=CLASSES), network.images()
                peaks.setdefault(mode, []).append(peak_alone(model, images))
                progress(f"{sweep.quantity} {value}, {mode}: {peaks[mode][-1] / 1e6:.1f} MB")
        except NotThereError as missing:
            progress(f"left out: {missing}")
    result: dict[str, Any] = {
        **{key: value for key, value in asdict(sweep).items() if key != sweep.quantity},
        "bytes": peaks,
    }
    if sweep.quantity == "stages":
        result["expected_bytes_per_stage"] = expected_growth(sweep, peaks)
    return result


def growth_per_stage(values: list[int], peaks: list[int]) -> float:
    """Bytes for each further stage, over the last part of the sweep."""
    return (peaks[-1] - peaks[-2]) / (values[-1] - values[-2])


def expected_growth(sweep: Sweep, peaks: Mapping[str, list[int]]) -> dict[str, float]:
    """Bytes that a further extension stage should cost in each mode."""
    channels = VARIANTS["s0"].channels
    pyramid = sum(c * (sweep.image_size // stride) ** 2 for c, stride in zip(channels, STRIDES, strict=True))
    of_a_stage = saved_bytes(sweep, sweep.values[0] + 1) - saved_bytes(sweep, sweep.values[0])
    expected = {"plain": float(of_a_stage), "plain checkpointing": 4.0 * sweep.batch * pyramid, "reversible": 0.0}
    if "stored" in peaks:
        values, stored = list(sweep.values), peaks["stored"]
        expected["stored"] = growth_per_stage(values[:2], stored[:2])
        expected |= {mode: fraction * growth_per_stage(values, stored) for mode, fraction in BUDGETS.items()}
    return {mode: expected[mode] for mode in peaks}


def saved_bytes(sweep: Sweep, stages: int) -> int:
    """What autograd saves of the yardstick's forward pass, weights and running statistics not counted."""
    saved: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that no other storage gets its address
        return tensor

    with torch.device("meta"):
        model: nn.Module = PlainRevBiFPN(replace(VARIANTS["s0"], num_ext_layers=stages))
        images = torch.empty(sweep.batch, 3, sweep.image_size, sweep.image_size)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    weights = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
    del output
    return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


def exponent(sweep: Mapping[str, Any], mode: str) -> float:
    """``p`` of ``bytes ~ quantity ** p`` between the two largest values (of images: their pixels)."""
    values = [value**2 if sweep["quantity"] == "image_size" else value for value in sweep["values"][-2:]]
    low, high = sweep["bytes"][mode][-2:]
    return math.log(high / low) / math.log(values[1] / values[0])


def as_table(sweep: Mapping[str, Any]) -> str:
    """A sweep in Markdown, with the growth that was found and the one that is expected."""
    rows = []
    for mode, peaks in sweep["bytes"].items():
        if sweep["quantity"] == "stages":
            found = f"{growth_per_stage(sweep['values'], peaks) / 1e6:.3f} MB a stage"
            expected = f"{sweep['expected_bytes_per_stage'][mode] / 1e6:.3f}"
        else:
            found, expected = f"exponent {exponent(sweep, mode):.2f}", "1"
        rows.append([mode, *(f"{peak / 1e6:.2f}" for peak in peaks), found, expected])
    fixed = ", ".join(f"{NAMES[key]} {sweep[key]}" for key in NAMES if key != sweep["quantity"])
    return table([f"MB at {NAMES[sweep['quantity']]} ... ({fixed})", *sweep["values"], "growth", "expected"], rows)
