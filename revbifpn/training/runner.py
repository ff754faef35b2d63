"""From a config file and command-line options to MMEngine's Runner, with early and clear errors."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import torch
import torch.distributed

from revbifpn.models.checkpoints import CheckpointError, check_integrity
from revbifpn.training.checks import ConfigError, check_data, is_classification, set_data_root

try:
    from mmengine.config import Config, DictAction
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner
    from mmengine.runner.checkpoint import get_torch_safe_globals
except ImportError as error:
    raise ImportError(
        "this needs MMEngine: pip install 'revbifpn[train]', or for detection 'revbifpn[mmdet]' (see tools/setup.sh)"
    ) from error

__all__ = [
    "ConfigError",
    "add_common_arguments",
    "build_runner",
    "check_data",
    "load_config",
    "one_line",
    "resume_from",
    "use_amp",
    "use_checkpoint",
]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and testing share."""
    parser.add_argument("config", type=Path, help="MMEngine config file")
    parser.add_argument("--work-dir", type=Path, help="folder for logs and checkpoints (default: work_dirs/<config name>)")
    parser.add_argument("--data", type=Path, help="root folder of the data set (classification)")
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
        FileNotFoundError: if there is no such config.
        ConfigError: if ``--data`` is given for a detector.
    """
    # MMEngine tries a safe load first, but then falls back to unpickling whatever the file holds.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if not args.config.is_file():
        raise FileNotFoundError(f"config not found: {args.config}")
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if getattr(args, "data", None) is not None:
        set_data_root(cfg, str(args.data))
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
    begin_with = cfg.model.get("checkpoint") if is_classification(cfg) else None
    if is_classification(cfg):
        cfg.model.checkpoint = None  # what the training began with is in its checkpoint
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
        if is_classification(cfg):
            cfg.model.checkpoint = begin_with
        print(f"no checkpoint in {folder} yet: starting from the beginning", file=sys.stderr)
        return
    try:
        check_integrity(checkpoint)
        _check_training_checkpoint(Path(checkpoint))
    except CheckpointError as error:
        others = [path for path in candidates if path != Path(checkpoint) and _is_intact(path)]
        hint = f". The newest usable one is {others[0]}: --resume {others[0]}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error
    cfg.load_from = checkpoint


def _check_training_checkpoint(path: Path) -> None:
    """Refuse files that hold weights only: published ones, for example."""
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely (weights_only=True): {reason}") from error
    if missing := {"state_dict", "meta"} - (set(content) if isinstance(content, dict) else set()):
        raise CheckpointError(
            f"{path} is no checkpoint of a training: it has no {' and no '.join(sorted(missing))}. To begin a new training "
            "from its weights leave --resume out and set --cfg-options model.checkpoint=FILE (classification) or "
            "model.backbone.init_cfg.checkpoint=FILE (detection)"
        )


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


def use_checkpoint(cfg: Config, checkpoint: Path) -> None:
    """Set the config to evaluate a checkpoint.

    A classifier takes those of ``tools/train.py`` and those in the published or timm's layout, and refuses what does not fit.

    Raises:
        FileNotFoundError, CheckpointError: if the file is missing or damaged.
    """
    check_integrity(checkpoint)
    if is_classification(cfg):
        cfg.model.update(checkpoint=str(checkpoint), remake_classifier=False)
    else:
        cfg.load_from = str(checkpoint)


def use_amp(cfg: Config) -> None:
    """Set the config to train with automatic mixed precision: float16 with loss scaling on a GPU, bfloat16 on a CPU.

    Raises:
        ConfigError: for a detector without a GPU.
    """
    if torch.cuda.is_available():
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    elif is_classification(cfg):
        cfg.optim_wrapper.update(type="AutocastOptimWrapper", dtype="bfloat16")
    else:
        raise ConfigError("--amp needs a GPU to train a detector: mmcv's operators have no bfloat16 on CPU. Leave --amp out")


def one_line(error: Exception) -> str:
    """What an error says; of one that came out of a dataloader's worker without the worker's traceback."""
    text = str(error)
    raised = f"{type(error).__module__}.{type(error).__qualname__}: "  # as a traceback ends
    return text.rpartition(raised)[2].strip() if "Original Traceback" in text else text


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that a config asks for.

    Without the tensorboard package its scalars are left out, and a line on stderr says so.
    """
    backends = cfg.get("visualizer", {}).get("vis_backends", [])
    if any(b["type"] == "TensorboardVisBackend" for b in backends) and importlib.util.find_spec("tensorboard") is None:
        print("tensorboard is not installed: no scalars for it (pip install tensorboard)", file=sys.stderr)
        cfg.visualizer.vis_backends = [b for b in backends if b["type"] != "TensorboardVisBackend"]
    if cfg.launcher == "pytorch" and not torch.cuda.is_available():
        # MMEngine asks for a GPU before it starts a process group, but leaves alone a group that is there already.
        torch.distributed.init_process_group("gloo")
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
        cfg.model_wrapper_cfg = cfg.get("model_wrapper_cfg") or wrapper
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)
