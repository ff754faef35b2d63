"""Predicted training memory against what the CPU allocator measures.

    python -m benchmarks.memory_prediction [--json FILE]

Both run the same step (forward, cross entropy, backward, SGD with momentum): one on fake tensors, one for real. Small images
for the large models, since the real step has to fit and to end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import describe, environment, table
from revbifpn.memory import format_bytes
from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import Subject

DEMO = "configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"

#: Model, batch, image side.
CASES = [
    ("revbifpn_s0", 4, 224),
    ("revbifpn_s1", 4, 192),
    ("revbifpn_s2", 4, 128),
    ("revbifpn_s3", 4, 128),
    ("revbifpn_s4", 2, 96),
    ("revbifpn_s5", 2, 96),
    ("revbifpn_s6", 2, 96),
    ("efficientnet_b0", 4, 224),
    ("efficientnet_b3", 4, 128),
    ("hrnet_w18", 4, 128),
    ("resnet50", 4, 224),
    ("mobilenetv3_large_100", 4, 224),
    ("vit_tiny_patch16_224", 4, 224),
    ("swin_tiny_patch4_window7_224", 2, 224),
    ("convnext_atto", 4, 224),
    (DEMO, 4, 192),
]


def compare(subject: Subject, mode: str, batch: int, side: int) -> dict[str, Any]:
    """One row."""
    predicted, measured = (
        profile_subject(subject, mode, batch, (side, side), Settings(method=method)) for method in ("predict", "measure")
    )
    return {
        "model": subject.name,
        "mode": mode,
        "batch": batch,
        "image": side,
        "predicted": predicted.peak,
        "measured": measured.peak,
        "predicted_activations": predicted.activations,
        "measured_activations": measured.activations,
    }


def as_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was predicted and measured, in Markdown."""
    lines = []
    for row in rows:
        off, off_activations = (
            f"{100 * (row[f'predicted{part}'] / row[f'measured{part}'] - 1):+.2f}%" for part in ("", "_activations")
        )
        sizes = (format_bytes(row["measured"]), format_bytes(row["predicted"]))
        lines.append([row["model"], row["mode"], f"{row['batch']}, {row['image']}", *sizes, off, off_activations])
    header = ["model", "mode", "batch, image", "measured", "predicted", "off by", "activations and temporaries off by"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(2)
    env = environment()
    print(describe(env))
    rows: list[dict[str, Any]] = []
    for name, batch, side in CASES:
        subject = find_subject(name)
        for mode in subject.modes:
            print(f"{name}, {mode}, batch {batch} at {side}", flush=True)
            rows.append(compare(subject, mode, batch, side))
    if args.json:
        args.json.write_text(json.dumps({"environment": env, "rows": rows}, indent=1) + "\n")
    print(f"\n{as_table(rows)}")


if __name__ == "__main__":
    main()
