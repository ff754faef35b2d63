"""What the model zoo says beside published figures: parameters, and the memory of a training step, predicted for a GPU.

    python -m benchmarks.model_zoo --json benchmarks/model_zoo.json [--only PATTERN]
    python -m benchmarks.model_zoo --write

The first line predicts, the second writes ``model_zoo/model-index.yml`` from the JSON files here; ``benchmarks.readme`` writes
the tables of ``model_zoo/README.md``. A step is forward, loss, backward and SGD with momentum, in float32. Classifiers get
batches of 8 at their own image size; detectors two images of 800x1344, or one with Faster R-CNN, as in the paper's tables.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import describe, environment, table, update_json
from benchmarks.model_zoo_files import write_index
from revbifpn.memory import format_bytes
from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings, count_parameters, profile_subject
from revbifpn.models import VARIANTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "model_zoo.json"
#: Folders of detectors' configs. The 2x and AMP variants are the 1x ones, trained otherwise.
FOLDERS = ("mask_rcnn", "faster_rcnn", "cascade_mask_rcnn", "retinanet", "fcos")
IMAGE = (800, 1344)
CLASSIFIER_BATCH = 8
GPU = Settings(optimizer="sgd", device="cuda")


def detector_configs() -> list[str]:
    """The configs of the zoo's detectors, relative to the project's folder."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / "configs" / folder).glob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if not any(part in path.stem for part in ("_2x", "_amp"))]


def images_of(config: str) -> int:
    """How many images a detector's step has."""
    return 1 if "/faster_rcnn/" in config else 2


def classifier(name: str) -> dict[str, Any]:
    """A classifier's row: parameters, and bytes of a step that grow with the batch, for one sample."""
    subject = find_subject(name)
    reports = {mode: profile_subject(subject, mode, CLASSIFIER_BATCH, subject.image, GPU) for mode in ("reversible", "stored")}
    memory = {mode: round(report.per_sample) for mode, report in reports.items()}
    return {"parameters": count_parameters(subject, subject.image), "image": subject.image[0], "bytes_per_sample": memory}


def detector(config: str) -> dict[str, Any]:
    """A detector's row: parameters, and the peak of a whole step."""
    subject = find_subject(str(ROOT / config))
    images = images_of(config)
    report = profile_subject(subject, subject.modes[0], images, IMAGE, GPU)
    return {"parameters": count_parameters(subject, IMAGE), "images": images, "peak": report.peak}


def rows(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows whose name, or config's path, fits a pattern."""
    for name in (f"revbifpn_{variant}" for variant in VARIANTS):
        if fnmatch.fnmatch(name, pattern):
            yield name, classifier(name)
    for config in detector_configs():
        if fnmatch.fnmatch(config, pattern):
            yield config, detector(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those that are there")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows whose name fits, such as 'configs/fcos/*'")
    parser.add_argument("--write", action="store_true", help="write model_zoo/model-index.yml from the JSON files")
    args = parser.parse_args()
    if args.write:
        write_index(ROOT / "model_zoo" / "model-index.yml", json.loads(RESULTS.read_text()))
        return
    torch.set_num_threads(2)
    env = environment()
    print(describe(env))
    lines = []
    for name, row in rows(args.only):
        memory = row.get("bytes_per_sample") or {"peak": row["peak"]}
        lines.append((name, f"{row['parameters']:,}", ", ".join(f"{key} {format_bytes(n)}" for key, n in memory.items())))
        print(lines[-1], flush=True)
        if args.json is not None:
            update_json(args.json, {name: row, "environment": env})
    print("\n" + table(("model", "parameters", "memory"), lines))


if __name__ == "__main__":
    main()
