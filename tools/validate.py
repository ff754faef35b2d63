"""Validate published (or any) weights on an ImageNet folder: top-1 beside the paper's, and which file it was.

python tools/validate.py --model revbifpn_s0 --checkpoint revbifpn_s0.pth.tar --data data/imagenet
"""

from __future__ import annotations

import argparse
from pathlib import Path

from revbifpn.training.classification.validate import validate
from revbifpn.training.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="revbifpn_s0", help="timm's name of the model")
    parser.add_argument("--checkpoint", required=True, help="the file of weights, or its address")
    parser.add_argument("--raw-weights", action="store_true", help="of a file with EMA weights too, validate the others")
    parser.add_argument("--allow-non-finite", action="store_true", help="validate weights that are NaN or infinite too")
    parser.add_argument("--data", type=Path, default=Path("data/imagenet"), help="folder with val/<class>/<image>")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--input-size", type=int, help="side of the images in pixels (default: the model's)")
    parser.add_argument("--crop-pct", type=float, help="part of the image that the crop keeps (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4, help="processes that load images")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be decoded, by name in the log"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    result = validate(
        args.model,
        args.checkpoint,
        args.data,
        num_classes=args.num_classes,
        batch_size=args.batch_size,
        workers=args.workers,
        input_size=args.input_size,
        crop_pct=args.crop_pct,
        on_error="skip" if args.skip_broken else "stop",
        ema=not args.raw_weights,
        allow_non_finite=args.allow_non_finite,
    )
    print(result)


if __name__ == "__main__":
    with one_line_errors("validate", ValueError):
        main()
