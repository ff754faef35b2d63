"""What the tables of a training step's cost make of figures: each one differs, so that one in another's place is seen."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import cost_tables
from benchmarks.networks import Network


def group(batch: int, **networks: dict[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    """A group's results: for each network and mode the MB a sample predicted for CUDA, and the milliseconds of a sample."""
    all_networks = {
        Network(name, mode, batch, 256, channels_last=not name.startswith("revbifpn")): figures
        for name, modes in networks.items()
        for mode, figures in modes.items()
    }
    return {
        "networks": {
            str(n): dict(
                name=n.name, mode=n.mode, batch=batch, image_size=256, channels_last=n.channels_last, top1=float(len(n.name))
            )
            for n in all_networks
        },
        "memory": {
            "bytes_per_sample": {
                str(n): {"cpu": 1e6 * (mb or 0) + 1e6, "cuda": mb and 1e6 * mb} for n, (mb, _) in all_networks.items()
            }
        },
        "time": {"seconds": {str(n): [ms * batch / 1000] for n, (_, ms) in all_networks.items() if ms}},
    }


S2 = group(
    8,
    revbifpn_s2={"plain": (230, 205), "stored": (105, 190), "reversible": (8.25, 210), "exact": (9, 220)},
    efficientnet_b1={"stored": (145, 100), "checkpointing": (31, 130)},
)
S6 = group(16, revbifpn_s6={"stored": (1019, None), "reversible": (42, None)}, efficientnet_b7={"stored": (3864, None)})
DETECTORS = [
    {"name": "revbifpn_s2", "mode": "reversible", "box_ap": 36.3, "step_per_sample": 0.458e9},
    {"name": "revbifpn_s2", "mode": "stored", "box_ap": 36.3, "step_per_sample": 1.97e9},
    {"name": "hrnetv2p_w18", "mode": "stored", "box_ap": 36.2, "step_per_sample": 3.02e9},
    {"name": "hrnetv2p_w18", "mode": "checkpointing", "box_ap": 36.2, "step_per_sample": 1.58e9},
]


def test_equal_accuracy() -> None:
    lines = cost_tables.equal_accuracy_table([S2, S6], DETECTORS).splitlines()[2:]
    assert lines == [
        "| **ImageNet, one image** | top-1, % | activations |  |  |  |",
        "| **RevBiFPN-S2**, 256x256 | 11.0 | 105 MB | 8.25 MB | 190 ms | 210 ms |",
        "| EfficientNet-B1, 256x256 | 15.0 | 145 MB | 31 MB | 100 ms | 130 ms |",
        "| **RevBiFPN-S6**, 256x256 | 11.0 | 1,019 MB | 42 MB | - | - |",
        "| EfficientNet-B7, 256x256 | 15.0 | 3,864 MB | - | - | - |",
        "| **Faster R-CNN, one image of 800x1344** | box AP | whole step |  |  |  |",
        "| **RevBiFPN-S2** | 36.3 | 1.97 GB | 0.46 GB | - | - |",
        "| HRNetV2p-W18 | 36.2 | 3.02 GB | 1.58 GB | - | - |",
    ]


def test_modes() -> None:
    lines = cost_tables.modes_table(S2).splitlines()[2:]
    assert lines == [
        "| an ordinary network of the same layers | 231 MB | 205 (205 - 205) | 1.00 |",
        "| stored | 106 MB | 190 (190 - 190) | 0.93 |",
        "| reversible | 9.25 MB | 210 (210 - 210) | 1.02 |",
        "| exact | 10 MB | 220 (220 - 220) | 1.07 |",
    ]


@pytest.mark.parametrize(("milliseconds", "word"), [(70, "less"), (110, "more")])
def test_the_sentence_about_a_checkpointed_network_says_what_was_measured(milliseconds: float, word: str) -> None:
    figures = group(
        8, revbifpn_s0={"reversible": (3, 90)}, efficientnet_b0={"stored": (90, 60), "checkpointing": (27, milliseconds)}
    )
    text = cost_tables.beside_checkpointed_b0(figures)
    assert f"a checkpointed EfficientNet-B0 (top-1 15.0) takes {word} time than RevBiFPN-S0 (11.0): " in text
    assert text.endswith(
        f"28 MB of activations and {milliseconds} ms a sample against 4 MB of activations and 90 ms a sample."
    )


def test_parts_of_detectors_and_frozen_stages() -> None:
    where = {"variant": "s3", "batch": 2, "side": 512}
    rows = [{"parts": "lean", "seconds": [4.0], "peak": 1.6e9}, {"parts": "MMDetection's", "seconds": [5.0], "peak": 3e9}]
    lines = cost_tables.detector_table(where | {"rows": rows}).splitlines()
    assert lines[0].startswith("| parts: RevBiFPN-S3, 2 images of 512x512 |")
    assert lines[2:] == [
        "| lean | 4.00 (4.00 - 4.00) | 0.80 | 1.60 GB |",
        "| MMDetection's | 5.00 (5.00 - 5.00) | 1.00 | 3.00 GB |",
    ]
    rows = [{"frozen_stages": n, "seconds": [2.0 / (n + 1)], "peak": 1e9} for n in (0, 1)]
    lines = cost_tables.detector_table(where | {"rows": rows}).splitlines()
    assert lines[2:] == ["| 0 | 2.00 (2.00 - 2.00) | 1.00 | 1.00 GB |", "| 1 | 1.00 (1.00 - 1.00) | 0.50 | 1.00 GB |"]
