"""From command-line options to a config: reading it, and the changes that options ask for."""

from __future__ import annotations

import argparse
import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction

from revbifpn.datasets.image_folders import class_folders
from revbifpn.reversible.budget import read_budget
from revbifpn.training.checks import LOADERS, check_kinds, datasets, is_classification, names_timm_model, split_root
from revbifpn.training.config_files import SETTINGS, find_config, read_config
from revbifpn.training.errors import ConfigError


class KeyValues(DictAction):
    """MMEngine's action for ``KEY=VALUE``, with errors in argparse's way."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        for value in values:
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (ValueError, AssertionError) as error:  # no "=", or brackets that do not match
                reason = f": {error}" if isinstance(error, AssertionError) else ""
                parser.error(f"argument {option_string}: expected KEY=VALUE, got {value!r}{reason}")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and testing share."""
    parser.add_argument(
        "config", type=Path, help="MMEngine config: a file, or the name of one of this package's, such as imagenet/NAME.py"
    )
    parser.add_argument("--work-dir", type=Path, help="folder for logs and checkpoints (default: work_dirs/<config name>)")
    parser.add_argument("--data", type=Path, help="root folder of the data set: class folders, or files in COCO's format")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="override settings of the config, for example train_dataloader.batch_size=4",
    )
    parser.add_argument(
        "--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="how processes were started"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def load_config(
    path: Path,
    options: dict[str, Any] | None = None,
    work_dir: Path | None = None,
    data: Path | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config and apply the options that training and testing share.

    Args:
        path: a file, or the name of one of this package's configs (:func:`.find_config`).
        options: settings by dotted key, such as ``{"train_dataloader.batch_size": 4}``.
        work_dir: folder for logs and checkpoints; None for the config's, or else ``work_dirs/<config name>``.
        data: root folder of the data sets of a config that classifies images or clips; a detector's is :mod:`.own_data`'s
            concern.
        launcher: how processes were started.

    Raises:
        FileNotFoundError: if there is no such config.
        ConfigError: if the config cannot be read or has no model, or an option changes nothing.
    """
    path = find_config(path)
    cfg = read_config(path)
    cfg.launcher = launcher
    if options:
        set_options(cfg, options)
    if not cfg.get("model"):
        raise ConfigError(f"{path} has no model: is it meant to be the _base_ of another config?")
    check_kinds(cfg)
    if data is not None and names_timm_model(cfg):
        set_data_root(cfg, data)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / path.stem)
    if Path(cfg.work_dir).resolve() == path.resolve().parent:
        raise ConfigError(
            f"the work folder {Path(cfg.work_dir)} is that of {path}, which would be overwritten: the work folder gets a copy "
            "of the config with all settings. Name another with --work-dir"
        )
    return cfg


def set_options(cfg: Config, options: dict[str, Any]) -> None:
    """Override settings of a config by dotted key.

    Raises:
        ConfigError: for an option that would change nothing or does not fit the config.
    """
    for key, value in options.items():
        first = key.split(".")[0]
        if first not in SETTINGS:
            similar = difflib.get_close_matches(first, SETTINGS, n=1)
            what = (
                "is a variable that the config file has used up; override the settings that are made of it instead"
                if first in cfg
                else f"is no setting; did you mean {similar[0]!r}?"
                if similar
                else f"is no setting; those are {', '.join(sorted(SETTINGS))}"
            )
            raise ConfigError(f"--cfg-options {key}={value}: {first!r} {what}")
        try:
            copy.deepcopy(cfg).merge_from_dict({key: value})
        except KeyError as error:  # of a list that is shorter
            raise ConfigError(f"--cfg-options {key}={value}: {str(error.args[0]).split(' of list ')[0]}") from error
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"--cfg-options {key}={value}: {key.rpartition('.')[0]!r} holds no settings by name") from error
    cfg.merge_from_dict(options)  # at once: _delete_ is for the others of its dict


def set_data_root(cfg: Config, root: Path) -> None:
    """Let all data sets of a config that classifies images or clips lie in ``root``."""
    for loader in LOADERS:
        for dataset in datasets(cfg.get(loader)):
            dataset["root"] = str(root)


def set_num_classes(cfg: Config, loaders: Sequence[str]) -> None:
    """Give the data sets of a classification config the model's number of classes.

    If the config leaves that open (``model.num_classes=None``), it becomes the number of class folders.

    Args:
        loaders: keys of ``cfg``, in whose data sets class folders are counted: in the first one that has some.

    Raises:
        FileNotFoundError: if folders are to be counted and there are none.
        ConfigError: if the number is open and there is nothing to count.
    """
    if not is_classification(cfg):
        return
    if cfg.model.get("num_classes", 1000) is None:
        cfg.model.num_classes = _count_classes(cfg, loaders)
    for loader in LOADERS:
        for dataset in datasets(cfg.get(loader)):
            dataset["num_classes"] = cfg.model.get("num_classes", 1000)


def _count_classes(cfg: Config, loaders: Sequence[str]) -> int:
    for loader in loaders:
        for dataset in datasets(cfg.get(loader)):
            mapped = "class_map" in (dataset.get("options") or {})
            root = None if dataset.get("name") or mapped else split_root(dataset, loader)
            if root is not None and root.is_dir() and (count := sum(class_folders(root).values())):
                return count
    raise ConfigError(
        f"{cfg.filename} leaves the number of classes open, and its data is no image folder in which they could be counted: "
        "set --cfg-options model.num_classes=N"
    )


def set_from_scratch(cfg: Config) -> None:
    """Let a classifier, or a detector's backbone, begin without weights, and learn what a fine-tuning leaves to them.

    Norms learn their statistics (``norm_eval=False``), nothing is frozen, and all layers learn at one rate (no
    ``layer_decay``, and no ``lr_mult`` of parts of the backbone).

    Raises:
        ConfigError: if a detector has no backbone.
    """
    if names_timm_model(cfg):
        cfg.model.update(checkpoint=None, norm_eval=False)
        (cfg.optim_wrapper.get("optimizer") or {}).pop("layer_decay", None)
        return
    backbone = cfg.model.get("backbone")
    if not backbone:
        raise ConfigError(f"{cfg.filename}: --from-scratch is for models with a backbone, a {cfg.model.type} has none")
    backbone.update(init_cfg=None)
    backbone.update({key: value for key, value in (("norm_eval", False), ("frozen_stages", -1)) if key in backbone})
    keys = (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    for name, settings in keys.items():
        if name.startswith("backbone."):
            settings.pop("lr_mult", None)


def set_activation_budget(cfg: Config, budget: str) -> None:
    """Train the config's RevBiFPN with an activation budget (:meth:`.RevBiFPNPyramid.set_activation_budget`).

    Raises:
        BudgetError: for what is no budget.
        ConfigError: if the config's network is another one.
    """
    asked = read_budget(budget)
    network = cfg.model if names_timm_model(cfg) else cfg.model.get("backbone", {})
    name = str(network.get("name") if names_timm_model(cfg) else network.get("type")).split(".")[-1]
    if not name.lower().startswith("revbifpn"):
        raise ConfigError(f"--activation-budget is for RevBiFPN, and {cfg.filename} trains {name}")
    if names_timm_model(cfg):
        network.setdefault("model_args", {})
        network = network.model_args
    network["activation_budget"] = asked


def use_amp(cfg: Config) -> None:
    """Set the config to train with automatic mixed precision: float16 with loss scaling on a GPU, bfloat16 on a CPU.

    Raises:
        ConfigError: for a detector without a GPU.
    """
    if torch.cuda.is_available():
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    elif names_timm_model(cfg):
        cfg.optim_wrapper.update(type="AutocastOptimWrapper", dtype="bfloat16")
    else:
        raise ConfigError("--amp needs a GPU to train a detector: mmcv's operators have no bfloat16 on CPU. Leave --amp out")
