"""Make an image folder of Fashion-MNIST (Debian's package dataset-fashion-mnist), without any download."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from revbifpn.datasets.fashion_mnist import make_fashion_mnist


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder with the four *-ubyte.gz files"
    )
    parser.add_argument("--out", type=Path, default=Path("data/fashion_mnist"), help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace a folder that was made from other files")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        written = make_fashion_mnist(args.source, args.out, args.force)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        sys.exit(f"make_fashion_mnist: {error}")
    print(f"{args.out}: " + ("written" if written else "complete already, nothing to do"))


if __name__ == "__main__":
    main()
