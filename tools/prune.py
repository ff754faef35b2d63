"""Prune a trained classifier in one shot: no training, a few hundred images, one pass through the network.

    python tools/prune.py --model revbifpn_s0 --checkpoint revbifpn_s0.pth.tar --data data/imagenet --sparsity 0.5
    python tools/prune.py --model resnet50 --checkpoint resnet50.safetensors --data data/imagenet --sparsity 2:4
    python tools/prune.py ... --sparsity 0.7 --epochs 2 --distill

Prints each layer's density and the error of its output, and top-1 on DATA/val before and after; calibration images are drawn
from DATA/train. The result is a compact .safetensors file, which everything in this project loads as any other checkpoint, and
a .json file beside it with the figures. Zeros by themselves make inference no faster (docs/sparsity-pruning.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from revbifpn.sparsity.prune import METHODS
from revbifpn.training.classification.prune import Training, prune_checkpoint
from revbifpn.training.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="revbifpn_s0", help="timm's name of the model")
    parser.add_argument("--checkpoint", required=True, help="the file of weights, or its address")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/<image> and val/<class>/<image>")
    parser.add_argument(
        "--sparsity", default="0.5", help="fraction of zeros in each layer, or a pattern such as 2:4 (default: 0.5)"
    )
    parser.add_argument("--method", choices=METHODS, default="sparsegpt")
    parser.add_argument(
        "--dense", nargs="+", default=[], metavar="PATTERN", help="further weights that stay dense, such as '*.se.*'"
    )
    parser.add_argument("--no-repair", action="store_true", help="leave the statistics of batch norms as they are")
    parser.add_argument("--calibration-images", type=int, default=128, help="images for calibration (default: 128)")
    parser.add_argument("--output", type=Path, help="default: work_dirs/prune/MODEL-SPARSITY.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")

    training = parser.add_argument_group("training on, with the zeros held (AdamW, no weight decay, linear decay)")
    training.add_argument("--epochs", type=int, default=0, help="over DATA/train (default: 0, no training)")
    training.add_argument("--lr", type=float, default=1e-4)
    training.add_argument("--train-batch-size", type=int, default=32)
    training.add_argument("--distill", action="store_true", help="match the dense network's features too (SquareHead)")

    images = parser.add_argument_group("images")
    images.add_argument("--train-split", default="train")
    images.add_argument("--val-split", default="val")
    images.add_argument("--input-size", type=int, help="side in pixels (default: the model's)")
    images.add_argument("--crop-pct", type=float, help="part of the image that the crop keeps (default: the model's)")
    images.add_argument("--batch-size", type=int, default=64)
    images.add_argument("--workers", type=int, default=4, help="processes that load images")
    images.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--raw-weights", action="store_true", help="of a file with EMA weights too, prune the others")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.epochs < 0 or (args.distill and not args.epochs):
        parser.error("--distill trains the pruned network on: say how long with --epochs, at least 1")
    return args


def main() -> None:
    args = parse_args()
    name = f"{args.model}-{args.sparsity.replace(':', 'of')}.safetensors"
    target = args.output or Path("work_dirs/prune") / name
    result = prune_checkpoint(
        args.model,
        args.checkpoint,
        args.data,
        args.sparsity,
        target,
        method=args.method,
        dense=args.dense,
        repair=not args.no_repair,
        calibration_images=args.calibration_images,
        training=Training(args.epochs, args.lr, args.train_batch_size, args.distill),
        train_split=args.train_split,
        val_split=args.val_split,
        batch_size=args.batch_size,
        workers=args.workers,
        input_size=args.input_size,
        crop_pct=args.crop_pct,
        on_error="skip" if args.skip_broken else "stop",
        ema=not args.raw_weights,
        device=args.device,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    print(result)
    target.with_suffix(".json").write_text(json.dumps(result.as_dict(), indent=1) + "\n")


if __name__ == "__main__":
    with one_line_errors("prune", ValueError):
        main()
