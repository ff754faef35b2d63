"""The models of MMEngine configs: MMDetection's detectors, and this project's classifiers of images and clips."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers
from torch import Tensor, nn

from revbifpn.integrations.config_parts import dictionaries_in
from revbifpn.memory.imagenet_accuracy import published_top1
from revbifpn.memory.profile import Inputs
from revbifpn.memory.subject import Size, Subject, SubjectError

#: How the names of config files end.
CONFIG_SUFFIXES = (".py", ".yaml", ".yml", ".json")


def is_config(spec: str) -> bool:
    """Return whether a name is meant as a config: a file's name, or ``package::path``."""
    return spec.endswith(CONFIG_SUFFIXES) or "::" in spec


def read_config(path: str) -> Any:
    """Read an MMEngine config.

    Args:
        path: a file, or ``package::path`` for one that an installed package carries.

    Raises:
        SubjectError: if it cannot be read, or MMEngine is not installed.
    """
    try:
        from mmengine.config import Config
        from mmengine.hub import get_config
    except ImportError as error:
        raise SubjectError(f"{path}: configs need MMEngine: pip install 'revbifpn[mmdet]' (see tools/setup.sh)") from error
    if "::" not in path and not Path(path).is_file():
        raise SubjectError(f"config not found: {path}")
    try:
        return get_config(path) if "::" in path else Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise SubjectError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error


class ConfigSubject(Subject):
    """The model of a config.

    Image size, batch and optimizer are those that the config trains with. Weights are not loaded: they do not matter for
    memory.

    Args:
        cfg: the config, as MMEngine reads it.
        name: what to call the model.
    """

    def __init__(self, cfg: Any, name: str) -> None:
        self.cfg = cfg
        self.name = name
        self.family = str(cfg.model.type).split(".")[-1]
        self.image = _image_of(cfg)
        self.batch = (cfg.get("train_dataloader") or {}).get("batch_size", 2)
        self.optimizer = _optimizer_of(cfg) or self.optimizer
        self.is_detector = "roi_head" in cfg.model or "bbox_head" in cfg.model
        self.is_of_clips = self.family == "ClipRecognizer"
        if not self.is_of_clips and cfg.model.get("name") and cfg.model.get("num_classes", 1000) == 1000:
            self.top1 = published_top1(cfg.model.name)

    @classmethod
    def from_file(cls, path: str) -> ConfigSubject:
        """Return the model of a config file, named like the file.

        Raises:
            SubjectError: if :func:`read_config` cannot read it, or there is no model in it.
        """
        cfg = read_config(path)
        if "model" not in cfg:
            raise SubjectError(f"config {path} has no 'model'")
        return cls(cfg, Path(path.partition("::")[2] or path).stem)

    def build(self, image: Size) -> nn.Module:
        from mmengine.registry import MODELS, init_default_scope

        if self.cfg.get("default_scope"):
            init_default_scope(self.cfg.default_scope)
        model_cfg = copy.deepcopy(self.cfg.model)
        _drop_pretrained(model_cfg)
        try:
            model: nn.Module = MODELS.build(model_cfg).train()
        except Exception as error:
            raise SubjectError(f"the model of {self.name} cannot be built: {type(error).__name__}: {error}") from error
        return model

    def inputs(self, batch: int, image: Size) -> Inputs:
        if self.is_detector:
            from revbifpn.memory.detection import detection_inputs

            return detection_inputs(batch, image, _num_classes(self.cfg.model))
        if self.is_of_clips:
            clips = torch.empty(batch, _frames_of(self.cfg), 3, *image, device="meta")
            labels = {name: torch.zeros(batch, dtype=torch.long) for name in self.cfg.model.outputs}
            return {"inputs": clips, "labels": labels, "mode": "loss"}
        images = torch.empty(batch, 3, *image, device="meta")
        return {"inputs": images, "labels": torch.zeros(batch, dtype=torch.long), "mode": "loss"}

    def loss(self, outputs: Any) -> Tensor:
        from revbifpn.memory.detection import sum_of_losses

        return sum_of_losses(outputs)

    def stand_ins(self, model: nn.Module) -> AbstractContextManager[None]:
        if not self.is_detector:
            return nullcontext()
        from revbifpn.memory.detection import without_values

        return without_values(model)


def _image_of(cfg: Any) -> Size:
    """Height and width of the training images, padded as the data preprocessor pads them."""
    loader = cfg.get("train_dataloader")
    scales = [
        node["scale"] for node in dictionaries_in(loader) if "scale" in node and str(node.get("type", "")).endswith("Resize")
    ]
    sizes = [node["input_size"] for node in dictionaries_in(loader) if "input_size" in node]
    if cfg.model.get("type") == "ClipRecognizer":
        # torchvision's transforms: the last one decides
        sizes = [node["size"] for node in dictionaries_in(loader) if "size" in node][-1:]
    size: Any = scales[0] if scales else sizes[0] if sizes else 224
    if isinstance(size, int):
        size = (size, size)
    elif isinstance(size[0], (list, tuple)):
        size = size[-1]
    if scales:
        size = (min(size), max(size))  # MMDetection's (long side, short side): a landscape image
    divisor = (cfg.model.get("data_preprocessor") or {}).get("pad_size_divisor", 1)
    height, width = (-(-side // divisor) * divisor for side in size[-2:])
    return height, width


def _optimizer_of(cfg: Any) -> str | None:
    """timm's name of a config's optimizer, if timm has it."""
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    name = str(optimizer.get("opt") or optimizer.get("type") or "").lower()
    return name if name in list_optimizers() else None


def _drop_pretrained(node: Any) -> None:
    """Weights do not matter for memory, and reading them may need the network."""
    for part in dictionaries_in(node):
        init = part.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            part["init_cfg"] = None
        if "checkpoint" in part and part.get("type") in ("ImageClassifier", "ClipRecognizer"):
            part["checkpoint"] = None


def _frames_of(cfg: Any) -> int:
    """Frames of a clip: the model's, or the training set's."""
    own = cfg.model.get("frames")
    return next(node["frames"] for node in ({"frames": own} if own else {}, *dictionaries_in(cfg)) if "frames" in node)


def _num_classes(node: Any) -> int:
    return min((part["num_classes"] for part in dictionaries_in(node) if "num_classes" in part), default=1)
