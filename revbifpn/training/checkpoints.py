"""Checkpoints of trainings: which one to go on from or to evaluate, and reading them without free unpickling."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import mmengine.dist as dist
import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn

from revbifpn.integrations.mmengine import checkpoint_types
from revbifpn.models.checkpoints import CheckpointError, check_integrity, check_state_dict, locate
from revbifpn.training.checks import is_classification, names_timm_model

WEIGHTS_ONLY = "weights-only:"  # in front of a file's name or address: MMEngine reads it with the function below


@CheckpointLoader.register_scheme(prefixes=WEIGHTS_ONLY)
def load_from_weights_only(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint that holds tensors, numbers and :func:`.checkpoint_types`, and refuse any other.

    MMEngine's own readers fall back to unpickling whatever a file holds, which runs code that the file names.

    Args:
        filename: ``weights-only:``, if MMEngine calls it, and a file or an address (:func:`.fetch`).
        map_location: as for ``torch.load``.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, holds other objects, or cannot be fetched.
    """
    path = _locate(filename.removeprefix(WEIGHTS_ONLY))
    check_integrity(path)
    try:
        with torch.serialization.safe_globals(checkpoint_types()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely (weights_only=True): {reason}") from error


def _locate(source: str) -> Path:
    """Return the file, or the one behind an address, which the first process of each machine fetches for the others."""
    first = dist.get_local_rank() == 0
    if not first:
        dist.barrier()
    path = locate(source)
    if first:
        dist.barrier()
    return path


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Set the config to go on from a checkpoint.

    Args:
        checkpoint: a file, or ``"auto"`` for the newest checkpoint of the work folder that can be used. None there at
            all: training starts from the beginning.

    Raises:
        FileNotFoundError, CheckpointError: if the named file is missing, damaged or none of a training, or all files of the
            folder are.
    """
    candidates = _checkpoints(Path(cfg.work_dir) if checkpoint == "auto" else Path(checkpoint).parent)
    if checkpoint == "auto":
        refused = []
        for path in candidates:
            try:
                _check_training_checkpoint(path)
            except CheckpointError as error:
                refused.append(str(error))
                print(f"refused: {error}", file=sys.stderr)
                continue
            print(f"going on from {path}", file=sys.stderr)
            _go_on_from(cfg, path)
            return
        if refused:
            raise CheckpointError("no usable checkpoint: " + "; ".join(refused) + ". Start again without --resume")
        print(f"no checkpoint in {cfg.work_dir} yet: starting from the beginning", file=sys.stderr)
        cfg.resume = False
        return
    try:
        _check_training_checkpoint(Path(checkpoint))
    except CheckpointError as error:
        others = [path for path in candidates if path != Path(checkpoint) and _is_usable(path)]
        hint = f". The newest usable one is {others[0]}: --resume {others[0]}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error
    _go_on_from(cfg, Path(checkpoint))


def _go_on_from(cfg: Config, path: Path) -> None:
    cfg.resume, cfg.load_from = True, str(path)
    if names_timm_model(cfg):
        cfg.model.checkpoint = None  # what the training began with is in its checkpoint
    elif backbone := cfg.get("model", {}).get("backbone"):
        backbone.init_cfg = None


def _check_training_checkpoint(path: Path) -> None:
    """Refuse files that are damaged, unsafe, or hold weights only: published ones, for example."""
    content = load_from_weights_only(str(path), map_location="meta")
    if missing := {"state_dict", "meta"} - (set(content) if isinstance(content, dict) else set()):
        raise CheckpointError(
            f"{path} is no checkpoint of a training: it has no {' and no '.join(sorted(missing))}. To begin a new training "
            "from its weights leave --resume out and set --cfg-options model.checkpoint=FILE (classification) or "
            "model.backbone.init_cfg.checkpoint=FILE (detection)"
        )


def _is_usable(path: Path) -> bool:
    try:
        _check_training_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that MMEngine wrote into a folder, newest first."""

    def step(path: Path) -> int:
        digits = path.stem.rpartition("_")[2]
        return int(digits) if digits.isdigit() else -1

    paths = [path for pattern in ("iter_*.pth", "epoch_*.pth") for path in folder.glob(pattern)]
    return sorted(paths, key=step, reverse=True)


def check_whole_checkpoint(model: nn.Module, checkpoint: str) -> None:
    """Check that a checkpoint of a training has exactly the weights of a model: MMEngine loads what fits and goes on.

    Raises:
        CheckpointError: if it is of another model, or none of a training.
    """
    _check_training_checkpoint(path := locate(checkpoint))
    inner = cast(nn.Module, model.module) if is_model_wrapper(model) else model
    check_state_dict(inner, load_from_weights_only(str(path), map_location="meta")["state_dict"], str(path))


def use_checkpoint(cfg: Config, checkpoint: str) -> None:
    """Set the config to evaluate a checkpoint, a file or an address.

    A classifier takes those of ``revbifpn-train`` and those in the published or timm's layout, and refuses what does not fit.

    Raises:
        FileNotFoundError, CheckpointError: if the file is missing or damaged.
    """
    path = locate(checkpoint)
    check_integrity(path)
    if is_classification(cfg):
        cfg.model.update(checkpoint=str(path), remake_classifier=False)
    else:
        cfg.load_from = str(path)
        if names_timm_model(cfg):
            cfg.model.checkpoint = None  # all that the training began with is in its checkpoint
