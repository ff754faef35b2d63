"""Evaluate a checkpoint of a classifier or a detector on its test set: a thin command line over MMEngine's Runner."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from revbifpn.datasets.image_folders import DataError
from revbifpn.models.checkpoints import CheckpointError
from revbifpn.training.runner import (
    ConfigError,
    add_common_arguments,
    build_runner,
    check_data,
    load_config,
    one_line,
    use_checkpoint,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "checkpoint", type=Path, help="as tools/train.py writes it; for a classifier also one in the published layout"
    )
    parser.add_argument(
        "--show-dir", type=Path, help="write pictures of predictions over the images into this folder (detection)"
    )
    parser.add_argument("--amp", action="store_true", help="predict with automatic mixed precision")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args)
    use_checkpoint(cfg, args.checkpoint)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir is not None:
        if "visualization" not in cfg.default_hooks:
            raise ConfigError("--show-dir is for detection: this config draws no predictions")
        cfg.default_hooks.visualization.update(draw=True, interval=1, test_out_dir=str(args.show_dir))
    check_data(cfg, "test_dataloader")
    build_runner(cfg).test()


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, CheckpointError, DataError, ConfigError) as error:
        sys.exit(f"test: {one_line(error)}")
