"""Make the demo's semi-synthetic data set (handwritten digits on photographs) in COCO format, without any download."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from revbifpn.datasets.demo_digits import DemoDataParameters, make_demo_data


def parse_args() -> argparse.Namespace:
    defaults = DemoDataParameters()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/demo_digits"), help="folder to write")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of every random choice")
    parser.add_argument("--num-train", type=int, default=defaults.num_train, help="training images")
    parser.add_argument("--num-val", type=int, default=defaults.num_val, help="validation images")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, help="side in pixels, a multiple of 32")
    parser.add_argument(
        "--classes",
        type=int,
        nargs="+",
        default=list(defaults.classes),
        help="digits to paste; for others than the default, set classes in configs/_base_/datasets/demo_digits.py too",
    )
    parser.add_argument("--force", action="store_true", help="replace a data set that was made with other parameters")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        parameters = DemoDataParameters(args.seed, args.num_train, args.num_val, args.image_size, tuple(args.classes))
        written = make_demo_data(args.out, parameters, args.force)
    except (ValueError, ImportError, FileExistsError, FileNotFoundError) as error:
        sys.exit(f"make_demo_data: {error}")
    sizes = f"{parameters.num_train} training and {parameters.num_val} validation images"
    print(f"{args.out}: {sizes}" + ("" if written else " are there already, nothing to do"))


if __name__ == "__main__":
    main()
