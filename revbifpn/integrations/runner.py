"""From a config file and command-line options to MMEngine's Runner, with early and clear errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from revbifpn.models.checkpoints import CheckpointError, check_integrity

try:
    from mmengine.config import Config, ConfigDict, DictAction
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner
except ImportError as error:
    raise ImportError("this needs MMEngine and MMDetection: pip install 'revbifpn[mmdet]' (see tools/setup.sh)") from error


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and testing share."""
    parser.add_argument("config", type=Path, help="MMEngine config file")
    parser.add_argument("--work-dir", type=Path, help="folder for logs and checkpoints (default: work_dirs/<config name>)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, for example train_dataloader.batch_size=4",
    )
    parser.add_argument(
        "--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="how processes were started"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config named by the arguments and apply their overrides. From here on no checkpoint is unpickled freely.

    Raises:
        FileNotFoundError: if there is no such config, or a data set that it names is not there.
    """
    # MMEngine tries a safe load first, but then falls back to unpickling whatever the file holds.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if not args.config.is_file():
        raise FileNotFoundError(f"config not found: {args.config}")
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = str(args.work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / args.config.stem)
    return cfg


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Set the config to go on from a checkpoint.

    Args:
        checkpoint: a file, or ``"auto"`` for the newest checkpoint of the work folder that is not damaged. None there at
            all: training starts from the beginning.

    Raises:
        FileNotFoundError, CheckpointError: if the named file is missing or damaged, or all files of the folder are.
    """
    cfg.resume = True
    folder = Path(cfg.work_dir) if checkpoint == "auto" else Path(checkpoint).parent
    candidates = _checkpoints(folder)
    if checkpoint == "auto":
        refused = []
        for path in candidates:
            try:
                check_integrity(path)
            except CheckpointError as error:
                refused.append(str(error))
                print(f"refused: {error}", file=sys.stderr)
                continue
            print(f"going on from {path}", file=sys.stderr)
            cfg.load_from = str(path)
            return
        if refused:
            raise CheckpointError("no usable checkpoint: " + "; ".join(refused) + ". Start again without --resume")
        cfg.resume = False
        print(f"no checkpoint in {folder} yet: starting from the beginning", file=sys.stderr)
        return
    try:
        check_integrity(checkpoint)
    except CheckpointError as error:
        others = [path for path in candidates if path != Path(checkpoint) and _is_intact(path)]
        hint = f". The newest usable one is {others[0]}: --resume {others[0]}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error
    cfg.load_from = checkpoint


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that MMEngine wrote into a folder, newest first."""

    def step(path: Path) -> int:
        digits = path.stem.rpartition("_")[2]
        return int(digits) if digits.isdigit() else -1

    paths = [path for pattern in ("iter_*.pth", "epoch_*.pth") for path in folder.glob(pattern)]
    return sorted(paths, key=step, reverse=True)


def _is_intact(path: Path) -> bool:
    try:
        check_integrity(path)
    except CheckpointError:
        return False
    return True


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that a config asks for."""
    if cfg.launcher == "pytorch" and not torch.cuda.is_available():
        # MMEngine asks for a GPU before it starts a process group, but leaves alone a group that is there already.
        torch.distributed.init_process_group("gloo")
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
        cfg.model_wrapper_cfg = cfg.get("model_wrapper_cfg") or wrapper
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)


def check_data(cfg: Config, *loaders: str) -> None:
    """Check that the data sets of the named dataloaders are on disk, before minutes are spent on anything else.

    Args:
        loaders: keys of ``cfg``, such as ``"train_dataloader"``.

    Raises:
        FileNotFoundError: naming the missing folder or annotation file and the layout that is expected.
    """
    for loader in loaders:
        for dataset in _datasets(cfg.get(loader)):
            root = Path(dataset.get("data_root") or ".")
            wanted = [root, *(root / path for path in _paths(dataset))]
            missing = [path for path in wanted if not path.exists()]
            if missing:
                raise FileNotFoundError(
                    f"data set of {loader} not found: {missing[0]} does not exist. Expected MMDetection's COCO layout: "
                    + ", ".join(str(path) for path in wanted[1:])
                    + ". Link your copy there, or set another place with --cfg-options "
                    f"{loader}.dataset.data_root=FOLDER"
                )


def _paths(dataset: ConfigDict) -> list[str]:
    prefix: dict[str, Any] = dataset.get("data_prefix") or {}
    return [path for path in (dataset.get("ann_file"), *prefix.values()) if path]


def _datasets(node: Any) -> Iterator[ConfigDict]:
    """All data set configs inside a dataloader config, wrapped ones too."""
    if isinstance(node, dict):
        if "ann_file" in node:
            yield node  # type: ignore[misc]
        for value in node.values():
            yield from _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _datasets(value)
