"""Find objects in an image, or in all images of a folder: pictures with boxes and masks, and one JSON file in COCO's format.

The checkpoint says which classes there are and whether there are masks, so a config serves checkpoints of own data too.
Exit status: 1 if images could not be read (they are named at the end, the others are done), 2 if nothing could be done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from revbifpn.training.config import KeyValues
from revbifpn.training.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="an image, or a folder, with all folders in it")
    parser.add_argument(
        "--config", type=Path, required=True, help="MMEngine config: a file, or the name of one of this package's"
    )
    parser.add_argument(
        "--checkpoint", required=True, help="the detector's, as tools/train.py writes it: a file or an address"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/predictions"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--score-threshold", type=float, default=0.3, help="leave out what is under it (default: %(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="write the JSON file alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=KeyValues, metavar="KEY=VALUE", help="override settings of the config"
    )
    args = parser.parse_args()
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"argument --score-threshold: must be in 0..1, got {args.score_threshold}")
    return args


def main() -> int:
    args = parse_args()
    from revbifpn.training.config import load_config
    from revbifpn.training.detection.predict import find_images, load_detector, predict

    images = find_images(args.images)
    model = load_detector(load_config(args.config, args.cfg_options), args.checkpoint, args.device)
    root = args.images if args.images.is_dir() else args.images.parent
    pictures = None if args.no_pictures else args.out / "images"
    result = predict(model, images, root, args.out / "predictions.json", pictures, args.score_threshold)
    print(f"{result.objects} objects in {result.images} images: {args.out / 'predictions.json'}", end="")
    print("" if args.no_pictures else f", pictures in {pictures}")
    for path, reason in result.broken:
        print(f"predict: skipped {path}: {reason}", file=sys.stderr)
    if result.broken:
        print(f"predict: {len(result.broken)} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if result.broken else 0


if __name__ == "__main__":
    with one_line_errors("predict"):
        sys.exit(main())
