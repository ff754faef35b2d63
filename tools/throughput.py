"""Images a second and memory of training and inference on this machine, for any of timm's models, side by side.

python tools/throughput.py revbifpn_s0 revbifpn_s0:stored efficientnet_b0 --batch-size 16 --image-size 224
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from revbifpn.integrations.throughput import measure_throughput


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="timm's names; revbifpn_<size> also with :stored, :reversible or :exact")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="side in pixels (default: each model's own)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each model; the median counts")
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    autocast = None if not args.amp else torch.float16 if args.device == "cuda" else torch.bfloat16
    results = measure_throughput(args.models, args.batch_size, args.image_size, args.device, autocast, args.repeats)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    kind = "measured" if args.device == "cuda" else "predicted"
    print(f"{where}; torch {torch.__version__}; batch {args.batch_size}; memory {kind}, training with SGD and momentum")
    print("| model | parameters, M | image | training, images/s | inference, images/s | training, MB | inference, MB |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        memory = f"{r.train_memory / 1e6:.0f} | {r.infer_memory / 1e6:.0f}"
        print(f"| {r.model} | {r.parameters / 1e6:.2f} | {r.image} | {r.train:.1f} | {r.infer:.1f} | {memory} |")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"throughput: {error}")
