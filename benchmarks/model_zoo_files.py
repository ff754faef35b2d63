"""The model zoo's index and tables, of ``model_zoo.json``, ``published_coco.json`` and :data:`revbifpn.models.PUBLISHED`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from benchmarks.common import median_and_spread, table
from revbifpn.models import PUBLISHED, VARIANTS

PUBLISHED_COCO = Path(__file__).with_name("published_coco.json")
NOT_HERE = "not measured here"
PAPER = "https://arxiv.org/abs/2206.14098"

_HEADER = """\
# Index of models in OpenMMLab's format, written by `python -m benchmarks.model_zoo --write`. The wheel has it where MIM looks
# for it, revbifpn/.mim/model-index.yml; paths are from there.
#
# The weights are the files that the authors of RevBiFPN published, and all accuracies are theirs: none was reproduced here.
# A model's config builds the network that its weights fit. Its training recipe is this project's, not the one of the weights.
# There are no weights of detectors. Training memory is predicted here, for SGD in float32; see benchmarks/model_zoo.py.
"""


def published_row(config: str) -> dict[str, float] | None:
    """The paper's figures for a detector's config; it has them for HRFPN and the 1x schedule."""
    folder, stem = Path(config).parent.name, Path(config).stem
    found = re.fullmatch(r"[a-z-]+_revbifpn-(s\d)_hrfpn_1x_coco", stem)
    tables = json.loads(PUBLISHED_COCO.read_text())
    if found is None or folder not in tables:
        return None
    row: dict[str, float] | None = tables[folder]["rows"].get(found[1])
    return row


def gigabytes(nbytes: float) -> float:
    """Bytes in GB of 10**9, to two digits after the point."""
    return round(nbytes / 1e9, 2)


def detectors(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The detectors' rows by the path of their configs."""
    return [(name, results[name]) for name in sorted(results) if name.startswith("configs/")]


def write_index(path: Path, results: Mapping[str, Any]) -> None:
    """``model-index.yml``: every classifier and every detector of ``results``."""
    collection = {
        "Name": "RevBiFPN",
        "Metadata": {
            "Training Data": "ImageNet-1k",
            "Architecture": ["Reversible Feature Pyramid", "MBConv", "Squeeze-and-Excitation"],
        },
        "Paper": {"Title": "RevBiFPN: The Fully Reversible Bidirectional Feature Pyramid Network", "URL": PAPER},
    }
    models = [_classifier_entry(name, results[f"revbifpn_{name}"]) for name in VARIANTS]
    models += [_detector_entry(config, row) for config, row in detectors(results)]
    text = yaml.safe_dump({"Collections": [collection], "Models": models}, sort_keys=False, width=120, allow_unicode=True)
    path.write_text(_HEADER + text)


def _classifier_entry(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    published = PUBLISHED[name]
    return {
        "Name": f"revbifpn_{name}",
        "In Collection": "RevBiFPN",
        "Config": f"configs/imagenet/revbifpn-{name}_8xb128_in1k.py",
        "Metadata": {
            "Parameters": row["parameters"],
            "Image Size": row["image"],
            "SHA256": published.sha256,
            "Training Memory (GB per image, predicted)": round(row["bytes_per_sample"]["reversible"] / 1e9, 4),
            "Source Of Accuracy": f"{PAPER} (as published, not reproduced)",
        },
        "Results": [{"Task": "Image Classification", "Dataset": "ImageNet-1k", "Metrics": {"Top 1 Accuracy": published.top1}}],
        "Weights": published.url,
    }


def _detector_entry(config: str, row: Mapping[str, Any]) -> dict[str, Any]:
    published = published_row(config)
    metadata: dict[str, Any] = {
        "Parameters": row["parameters"],
        f"Training Memory (GB, {_images(row)} of 800x1344, predicted)": gigabytes(row["peak"]),
    }
    entry: dict[str, Any] = {"Name": Path(config).stem, "In Collection": "RevBiFPN", "Config": config, "Metadata": metadata}
    if published is not None:
        metadata["Source Of Accuracy"] = f"{PAPER} (as published, not reproduced)"
        tasks = {"box_ap": ("Object Detection", "box AP"), "mask_ap": ("Instance Segmentation", "mask AP")}
        entry["Results"] = [
            {"Task": task, "Dataset": "COCO", "Metrics": {metric: published[key]}}
            for key, (task, metric) in tasks.items()
            if key in published
        ]
    return entry


def _images(row: Mapping[str, Any]) -> str:
    return "an image" if row["images"] == 1 else f"{row['images']} images"


def classifier_table(results: Mapping[str, Any]) -> str:
    """Every variant, as Markdown."""
    header = ("model", "parameters", "image", "top-1, published", "top-1, here", "MB an image, reversible / stored", "sha256")
    rows = []
    for name in VARIANTS:
        row, published = results[f"revbifpn_{name}"], PUBLISHED[name]
        memory = " / ".join(f"{row['bytes_per_sample'][mode] / 1e6:.1f}" for mode in ("reversible", "stored"))
        line = (f"revbifpn_{name}", f"{row['parameters']:,}", row["image"], published.top1, NOT_HERE, memory)
        rows.append((*line, f"`{published.sha256}`"))
    return table(header, rows)


def detector_table(results: Mapping[str, Any]) -> str:
    """Every detector, as Markdown."""
    header = ("config", "parameters", "box / mask AP, published", "AP, here", "GB, published", "GB, predicted here", "images")
    rows = []
    for config, row in detectors(results):
        published = published_row(config) or {}
        accuracy = " / ".join(str(published[key]) for key in ("box_ap", "mask_ap") if key in published) or "none"
        link = f"[{Path(config).stem}](../{config})"
        numbers = (published.get("memory_gb", "none"), f"{gigabytes(row['peak']):.2f}", row["images"])
        rows.append((link, f"{row['parameters'] / 1e6:.2f} M", accuracy, NOT_HERE, *numbers))
    return table(header, rows)


def frozen_table(content: Mapping[str, Any]) -> str:
    """A backbone's step by ``frozen_stages``, as :mod:`benchmarks.detection` measured it."""
    what = f"frozen_stages, {content['variant'].upper()}, {content['batch']} images of {content['side']}x{content['side']}"
    lines = [
        (row["frozen_stages"], median_and_spread(row["seconds"], 2), f"{row['peak'] / 1e6:.1f}") for row in content["rows"]
    ]
    return table((what, "s a step", "MB, predicted"), lines)
