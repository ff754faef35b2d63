"""Train a classifier or a detector from a config: a thin command line over MMEngine's Runner."""

from __future__ import annotations

import argparse
import os
import sys

from revbifpn.datasets.image_folders import DataError
from revbifpn.models.checkpoints import CheckpointError
from revbifpn.training.hooks import NonFiniteLossError
from revbifpn.training.runner import (
    ConfigError,
    add_common_arguments,
    build_runner,
    check_data,
    load_config,
    one_line,
    resume_from,
    use_amp,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from the newest usable checkpoint of the work folder, or from the one named",
    )
    parser.add_argument(
        "--amp", action="store_true", help="train with automatic mixed precision (classifiers on a CPU too, in bfloat16)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args)
    if args.amp:
        use_amp(cfg)
    if args.resume is not None:
        resume_from(cfg, args.resume)
    check_data(cfg, "train_dataloader", "val_dataloader")
    build_runner(cfg).train()


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, CheckpointError, DataError, NonFiniteLossError, ConfigError) as error:
        sys.exit(f"train: {one_line(error)}")
