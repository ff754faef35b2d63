"""Are the data sets that a config names on disk, and do they fit its model? Checked before minutes go into anything else.

Nothing here changes a config; what does is in :mod:`revbifpn.training.config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data.dataset_factory import _search_split

from revbifpn.datasets.image_folders import check_class_folders
from revbifpn.models.checkpoints import locate
from revbifpn.training.errors import ConfigError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_CLASSIFICATION = ("ClassificationDataset", "IterableClassificationDataset")
_CLIPS = "ClipDataset"


def is_classification(cfg: Any) -> bool:
    """Whether a config is one of image classification."""
    return bool((cfg.get("model") or {}).get("type") == "ImageClassifier")


def is_clip_classification(cfg: Any) -> bool:
    """Whether a config is one of clip classification."""
    return bool((cfg.get("model") or {}).get("type") == "ClipRecognizer")


def names_timm_model(cfg: Any) -> bool:
    """Whether the config's model is a timm model by ``name``, with ``model_args`` and a ``checkpoint``: both of the above."""
    return is_classification(cfg) or is_clip_classification(cfg)


def check_sections(cfg: Any, *names: str) -> None:
    """Check that a config has what a training or a test needs.

    Args:
        cfg: MMEngine config.
        names: keys that must not be missing, such as ``"train_dataloader"``.

    Raises:
        ConfigError: naming the missing ones.
    """
    if missing := [name for name in names if not cfg.get(name)]:
        raise ConfigError(f"{cfg.filename} has no {', no '.join(missing)}: is it meant to be the _base_ of another config?")


_ONE = ("model", "train_cfg", "val_cfg", "test_cfg", "optim_wrapper", "env_cfg", "log_processor", "visualizer", "randomness")
_OWN_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")  # MMEngine's
_SEVERAL = ("param_scheduler", "val_evaluator", "test_evaluator")


def check_kinds(cfg: Any) -> None:
    """Check that settings that are dicts, or lists of dicts, are some, as far as a config has them.

    Raises:
        ConfigError: naming the first that is something else, or that is missing beside what goes with it.
    """
    for name in (*_ONE, *_SEVERAL, *LOADERS, "default_hooks", "custom_hooks"):
        value = cfg.get(name)
        one, several = name != "custom_hooks", name in (*_SEVERAL, "custom_hooks")
        is_list = several and isinstance(value, (list, tuple)) and all(isinstance(entry, dict) for entry in value)
        if value is not None and not is_list and not (one and isinstance(value, dict)):
            kinds = " or ".join(["a dict"] * one + ["a list of dicts"] * several)
            raise ConfigError(f"{cfg.filename}: {name} is {value!r}, it has to be {kinds}")
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if not (isinstance(hook, dict) and hook) and not (hook is None and name in _OWN_HOOKS):
            none = f"; None is for {', '.join(_OWN_HOOKS)}"
            raise ConfigError(f"{cfg.filename}: default_hooks.{name} is {hook!r}, it has to be a dict with a type{none}")
    for names in ([f"{split}_{part}" for part in ("dataloader", "cfg", "evaluator")] for split in ("val", "test")):
        if 0 < len(missing := [name for name in names if cfg.get(name) is None]) < len(names):
            raise ConfigError(f"{cfg.filename} has no {', no '.join(missing)}: {', '.join(names)} go together")


def check_data(cfg: Any, *loaders: str) -> None:
    """Check that the data sets of the named dataloaders are on disk, and that images or clips fit each other and the model.

    Args:
        cfg: MMEngine config.
        loaders: keys of ``cfg``, such as ``"train_dataloader"``.

    Raises:
        FileNotFoundError: naming the missing folder or annotation file and the layout that is expected.
        DataError: if image folders do not fit each other or the model (:func:`.check_class_folders`), or clips are at fault
            (:func:`.check_clips`).
    """
    if is_clip_classification(cfg):
        from revbifpn.training.clips.checks import check_clips

        check_clips(cfg, *loaders)
        return
    folders: dict[bool, Path] = {}  # training? -> class folders
    class_map = False
    for loader in loaders:
        for dataset in datasets(cfg.get(loader)):
            if dataset.get("type") not in _CLASSIFICATION:
                _check_coco(dataset, loader)
            elif not dataset.get("name"):
                root = split_root(dataset, loader)
                class_map |= "class_map" in (dataset.get("options") or {})
                if root.is_dir():
                    folders[bool(dataset.get("training"))] = root
    if folders:
        check_class_folders(folders.get(True), folders.get(False), None if class_map else cfg.model.num_classes)


def check_first_weights(cfg: Any) -> None:
    """Check that the file of weights that a training begins with is on disk, if there is one.

    Raises:
        FileNotFoundError: naming the file, the address and sha256 of published weights, and the options to do without it.
    """
    if names_timm_model(cfg):
        name, option = cfg.model.get("checkpoint"), "model.checkpoint=FILE"
    else:
        init = (cfg.model.get("backbone") or {}).get("init_cfg")
        name = init.get("checkpoint") if isinstance(init, dict) else None
        option = "model.backbone.init_cfg.checkpoint=FILE"
    if not name or "://" in name:  # what lies behind an address is checked when it is fetched
        return
    try:
        locate(name)
    except FileNotFoundError as error:
        message = (
            f"{error}. Put the file there, or name another with --cfg-options {option}; --from-scratch begins without weights"
        )
        raise FileNotFoundError(message) from error


def split_root(dataset: dict[str, Any], loader: str) -> Path:
    """The folder of a classification data set's split, or its tar file.

    Raises:
        FileNotFoundError: naming what is missing and the layout that is expected.
    """
    root, split = Path(dataset["root"]), dataset["split"]
    found = Path(_search_split(str(root), split)) if root.is_dir() else root
    if not found.exists() or (root.is_dir() and split and found == root):
        raise FileNotFoundError(
            f"data set of {loader} not found: {root / split if root.is_dir() else root} does not exist. Expected "
            f"{root}/train/<class>/<image> and {root}/val/<class>/<image>. Link your copy there, or name another place with "
            "--data FOLDER"
        )
    return found


def datasets(node: Any) -> Iterator[dict[str, Any]]:
    """All data set configs inside a dataloader config, wrapped ones too."""
    if isinstance(node, dict):
        if "ann_file" in node or node.get("type") in (*_CLASSIFICATION, _CLIPS):
            yield node
        for value in node.values():
            yield from datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from datasets(value)


def _check_coco(dataset: dict[str, Any], loader: str) -> None:
    root = Path(dataset.get("data_root") or ".")
    wanted = [root, *(root / path for path in _paths(dataset))]
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"data set of {loader} not found: {missing[0]} does not exist. Expected MMDetection's COCO layout: "
            + ", ".join(str(path) for path in wanted[1:])
            + ". Link your copy there, set another place with --cfg-options "
            f"{loader}.dataset.data_root=FOLDER, or name your own data with --data FOLDER"
        )


def _paths(dataset: dict[str, Any]) -> list[str]:
    prefix: dict[str, Any] = dataset.get("data_prefix") or {}
    return [path for path in (dataset.get("ann_file"), *prefix.values()) if path]
