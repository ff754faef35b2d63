"""Draw a detector's predictions over the first images of its test set, and one contact sheet of them (predictions.png)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from revbifpn.training.errors import ConfigError, one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("config", type=Path, help="MMEngine config: a file, or the name of one of this package's")
    parser.add_argument("checkpoint", type=Path, help="the detector's checkpoint, as tools/train.py writes it")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/predictions"), help="folder for the pictures")
    parser.add_argument("--count", type=int, default=8, help="images to draw")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out predictions under it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to predict")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"argument --count: must be 1 at least, got {args.count}")
    return args


def main() -> None:
    args = parse_args()
    from mmdet.apis import init_detector

    from revbifpn.training.checkpoints import WEIGHTS_ONLY
    from revbifpn.training.checks import check_data, is_classification
    from revbifpn.training.config import load_config
    from revbifpn.training.config_files import named_build_errors
    from revbifpn.training.detection.drawing import contact_sheet, draw_predictions

    cfg = load_config(args.config)
    if is_classification(cfg):
        raise ConfigError(f"{args.config} is a config of classification: there are no predictions to draw on its images")
    check_data(cfg, "test_dataloader")
    with named_build_errors(cfg):
        model = init_detector(cfg, f"{WEIGHTS_ONLY}{args.checkpoint}", device=args.device)
    files = draw_predictions(cfg, model, args.out / "images", args.count, score_threshold=args.score_threshold)
    contact_sheet(files, args.out / "predictions.png")
    print(f"{len(files)} pictures in {args.out / 'images'}, all on one: {args.out / 'predictions.png'}")


if __name__ == "__main__":
    with one_line_errors("draw_predictions"):
        main()
