"""What can be profiled by name: timm models, MMEngine configs, and functions that make a model.

A name may end in a mode: ``revbifpn_s0:stored``, ``my_config.py:exact``, ``module:callable:stored``. What stands after the
last colon is read as a mode if it is one (:func:`.is_mode`). A function that is named like a mode is therefore written with a
mode behind it: ``module:stored:stored``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from typing import Any

import timm
import torch
from torch import Tensor, nn

import revbifpn  # noqa: F401  (registers this project's timm models)
from revbifpn.memory.configs import ConfigSubject, is_config
from revbifpn.memory.imagenet_accuracy import published_top1
from revbifpn.memory.modes import KNOWN, is_mode
from revbifpn.memory.profile import Inputs
from revbifpn.memory.subject import Size, Subject, SubjectError
from revbifpn.models.clips import ClipClassifier
from revbifpn.models.clips.classifier import Temporal


def subject_and_mode(spec: str, frames: int | None = None, temporal: Temporal = "mean") -> tuple[Subject, str | None]:
    """Find the model that a user means, and the mode if the user names one.

    Args:
        spec: what :func:`find_subject` takes, and after it, if one mode is meant, a colon and the mode.
        frames: of a clip, for a timm model as a classifier of clips (:class:`ClipSubject`); None for images.
        temporal: its temporal head.

    Returns:
        The subject, and a mode that it has, or None for all of them.

    Raises:
        SubjectError: if there is no such model, or it does not have the mode.
    """
    name, mode = split_mode(spec)
    subject = find_subject(name) if frames is None else ClipSubject(name, frames, temporal)
    if mode is not None:
        subject.check_mode(mode)
    return subject, mode


def split_mode(spec: str) -> tuple[str, str | None]:
    """``"revbifpn_s0:stored"`` -> ``("revbifpn_s0", "stored")``; ``"module:callable"`` -> ``("module:callable", None)``.

    Raises:
        SubjectError: if there is something after a model's name that is no mode.
    """
    name, colon, last = spec.rpartition(":")
    if not colon or name.endswith(":"):  # a single name, or package::path
        return spec, None
    if is_mode(last):
        return name, last
    if ":" in name or is_config(name) or _is_timm_model(name):
        raise SubjectError(f"{spec}: unknown mode {last!r}: choose from {', '.join(KNOWN)}")
    return spec, None


def find_subject(name: str) -> Subject:
    """Find the model that a user means.

    Args:
        name: a timm name, a config file (``.py``, or ``package::path`` for one inside an installed package), or
            ``module:callable``; without a mode.

    Raises:
        SubjectError: if there is no such model.
    """
    if is_config(name):
        return ConfigSubject.from_file(name)
    return CallableSubject(name) if ":" in name else TimmSubject(name)


class TimmSubject(Subject):
    """A timm model by name."""

    def __init__(self, name: str) -> None:
        if not _is_timm_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
            raise SubjectError(
                f"unknown model {name!r}"
                + (f": did you mean {', '.join(near)}?" if near else ".")
                + " Give a timm model name (timm.list_models()), an MMEngine config file, or module:callable"
            )
        self.name = name
        self.family = name.removeprefix("tf_").split("_")[0]
        cfg = timm.get_pretrained_cfg(name)
        _, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
        self.image = height, width
        self.fixed_size = bool(cfg is not None and cfg.fixed_input_size)
        self.top1 = published_top1(name)

    def build(self, image: Size) -> nn.Module:
        return timm.create_model(self.name, **({"img_size": image} if self.fixed_size else {})).train()


class ClipSubject(Subject):
    """A timm model as the backbone of a :class:`.ClipClassifier` with one output; a sample is a clip."""

    batch = 2

    def __init__(self, name: str, frames: int, temporal: Temporal = "mean") -> None:
        if is_config(name) or ":" in name:
            raise SubjectError(f"{name}: frames are for timm models; a config of clips says its own, and so does a function")
        backbone = TimmSubject(name)
        self.backbone, self.frames, self.temporal = name, frames, temporal
        self.name = f"{name} on {frames} frames" + ("" if temporal == "mean" else f" ({temporal})")
        self.family, self.image, self.fixed_size = backbone.family, backbone.image, backbone.fixed_size

    def build(self, image: Size) -> nn.Module:
        arguments = {"img_size": image} if self.fixed_size else {}
        try:
            return ClipClassifier(self.backbone, {"level": 4}, self.temporal, self.frames, model_args=arguments)
        except ValueError as error:
            raise SubjectError(f"{self.name}: {error}") from error

    def model(self, mode: str, image: Size, batch: int | None = None) -> nn.Module:
        return super().model(mode, image, None if batch is None else batch * self.frames)  # budgets are planned in images

    def inputs(self, batch: int, image: Size) -> Inputs:
        return torch.empty(batch, self.frames, 3, *image, device="meta")

    def loss(self, outputs: Any) -> Tensor:
        return super().loss(outputs["level"])


class CallableSubject(Subject):
    """``module:callable``: the model that a function returns, called with a batch of images.

    The module is imported as usual; the working directory is searched too, after everything else, so that a file in it does
    not take the place of a library.
    """

    image = (224, 224)
    family = "custom"

    def __init__(self, spec: str) -> None:
        self.name = spec
        module_name, _, attribute = spec.partition(":")
        if (folder := os.getcwd()) not in sys.path:
            sys.path.append(folder)  # it stays there: the function may import more when it is called
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # a module is a program
            raise SubjectError(
                f"{spec}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        try:
            self._make = getattr(module, attribute)
        except AttributeError as error:
            where = getattr(module, "__file__", None) or "built in"
            raise SubjectError(f"{spec}: module {module_name!r} ({where}) has no {attribute!r}") from error

    def build(self, image: Size) -> nn.Module:
        try:
            model = self._make()
        except Exception as error:
            needs = f"{self.name}{inspect.signature(self._make)}"
            raise SubjectError(f"{needs} failed without arguments: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise SubjectError(f"{self.name} returned {type(model).__name__}, not a torch.nn.Module")
        return model.train()


def _is_timm_model(name: str) -> bool:
    return timm.is_model(name.split(".")[0])
