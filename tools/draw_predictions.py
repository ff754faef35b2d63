"""Draw a detector's predictions over the first images of its test set, and one contact sheet of them (predictions.png)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmdet.apis import init_detector

from revbifpn.training.detection.drawing import contact_sheet, draw_predictions
from revbifpn.training.runner import check_data, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("config", type=Path, help="MMEngine config file")
    parser.add_argument("checkpoint", type=Path, help="the detector's checkpoint, as tools/train.py writes it")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/predictions"), help="folder for the pictures")
    parser.add_argument("--count", type=int, default=8, help="images to draw")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out predictions under it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to predict")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.count < 1:
        sys.exit(f"draw_predictions: --count must be 1 at least, got {args.count}")
    args.launcher, args.cfg_options, args.work_dir = "none", None, None
    try:
        cfg = load_config(args)
        check_data(cfg, "test_dataloader")
        if not args.checkpoint.is_file():
            raise FileNotFoundError(f"checkpoint not found: {args.checkpoint}")
    except FileNotFoundError as error:
        sys.exit(f"draw_predictions: {error}")
    model = init_detector(cfg, str(args.checkpoint), device=args.device)
    files = draw_predictions(cfg, model, args.out / "images", args.count, score_threshold=args.score_threshold)
    contact_sheet(files, args.out / "predictions.png")
    print(f"{len(files)} pictures in {args.out / 'images'}, all on one: {args.out / 'predictions.png'}")


if __name__ == "__main__":
    main()
