"""Evaluate a checkpoint of a classifier or a detector on its test set: a thin command line over MMEngine's Runner.

Metrics go to test/metrics.json of the work folder, a detector's predictions in COCO's format for results beside it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from revbifpn.training.errors import ConfigError, one_line_errors


def main() -> None:
    """Evaluate; exit status 2 and one line on stderr for what the user can mend."""
    with one_line_errors("test"):
        import revbifpn.integrations.mmengine  # noqa: F401  (first, since it says how to install MMEngine)
        from revbifpn.training import checks, config
        from revbifpn.training.checkpoints import check_whole_checkpoint, use_checkpoint
        from revbifpn.training.detection import own_data
        from revbifpn.training.detection.checkpoint import DetectorCheckpoint
        from revbifpn.training.results import keep_predictions, write_metrics
        from revbifpn.training.runner import build_runner

        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        config.add_common_arguments(parser)
        parser.add_argument(
            "checkpoint", help="file or address: as training writes it; for a classifier also in the published layout"
        )
        parser.add_argument(
            "--show-dir", type=Path, help="write pictures of predictions over the images into this folder (detection)"
        )
        parser.add_argument("--amp", action="store_true", help="predict with automatic mixed precision")
        own_data.add_arguments(parser, "val")
        args = parser.parse_args()
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))

        cfg = config.load_config(args.config, args.cfg_options, args.work_dir, args.data, args.launcher)
        use_checkpoint(cfg, args.checkpoint)
        checks.check_sections(cfg, "test_dataloader", "test_cfg", "test_evaluator")
        if args.amp:
            cfg.test_cfg.fp16 = True
        if args.show_dir is not None:
            if "visualization" not in (cfg.get("default_hooks") or {}):
                raise ConfigError("--show-dir is for detection: this config draws no predictions")
            cfg.default_hooks.visualization.update(draw=True, interval=1, test_out_dir=str(args.show_dir))
        detector = None if checks.names_timm_model(cfg) else DetectorCheckpoint.read(args.checkpoint)
        if detector is not None and (data := own_data.OwnData.from_args(args, cfg)) is not None:
            own_data.use_for_testing(cfg, data, detector)
        config.set_num_classes(cfg, ("test_dataloader",))
        checks.check_data(cfg, "test_dataloader")
        keep_predictions(cfg)
        runner = build_runner(cfg)
        if detector is not None:
            detector.check_fits(runner.model)
        elif checks.is_clip_classification(cfg):
            check_whole_checkpoint(runner.model, args.checkpoint)
        metrics = runner.test()
        print(f"written: {write_metrics(cfg, args.checkpoint, metrics)}")


if __name__ == "__main__":
    main()
