"""Train a classifier or a detector from a config: a thin command line over MMEngine's Runner."""

from __future__ import annotations

import argparse
import os

from revbifpn.training.errors import one_line_errors


def main() -> None:
    """Train; exit status 2 and one line on stderr for what the user can mend."""
    with one_line_errors("train"):
        import revbifpn.integrations.mmengine  # noqa: F401  (first, since it says how to install MMEngine)
        from revbifpn.training import checks, config
        from revbifpn.training.checkpoints import resume_from
        from revbifpn.training.detection import own_data
        from revbifpn.training.runner import build_runner

        parser = argparse.ArgumentParser(description=__doc__)
        config.add_common_arguments(parser)
        begin = parser.add_mutually_exclusive_group()
        begin.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            metavar="CHECKPOINT",
            help="go on from the newest usable checkpoint of the work folder, or from the one named",
        )
        begin.add_argument(
            "--from-scratch",
            action="store_true",
            help="begin without the config's weights: norms learn their statistics, nothing is frozen, and all layers learn "
            "at one rate",
        )
        parser.add_argument(
            "--amp", action="store_true", help="train with automatic mixed precision (classifiers on a CPU too, in bfloat16)"
        )
        parser.add_argument(
            "--activation-budget",
            metavar="BUDGET",
            help="how much of RevBiFPN's activations to keep instead of rebuilding them: a fraction of what stored mode "
            "keeps, such as 0.25, or a size such as '2 GiB' (default: 0, all are rebuilt)",
        )
        own_data.add_arguments(parser, "train", "val")
        args = parser.parse_args()
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))

        cfg = config.load_config(args.config, args.cfg_options, args.work_dir, args.data, args.launcher)
        if args.amp:
            config.use_amp(cfg)
        if args.activation_budget is not None:
            config.set_activation_budget(cfg, args.activation_budget)
        if args.from_scratch:
            config.set_from_scratch(cfg)
        if args.resume is not None:
            resume_from(cfg, args.resume)
        checks.check_sections(cfg, "train_dataloader", "train_cfg", "optim_wrapper")
        if (data := own_data.OwnData.from_args(args, cfg)) is not None:
            own_data.use_for_training(cfg, data)
        config.set_num_classes(cfg, ("train_dataloader", "val_dataloader"))
        checks.check_data(cfg, "train_dataloader", "val_dataloader")
        checks.check_first_weights(cfg)
        build_runner(cfg).train()


if __name__ == "__main__":
    main()
