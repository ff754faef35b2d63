"""What can be profiled by name: timm models, MMEngine configs, and functions that make a model."""

from __future__ import annotations

import difflib
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import list_optimizers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import revbifpn  # noqa: F401  (registers this project's timm models)
from revbifpn.memory.fake import FakeExecution, UnsupportedOperatorError, fake_weights
from revbifpn.memory.profile import Inputs, call_model, mean_of_outputs, profile_training
from revbifpn.memory.published import published_accuracy
from revbifpn.memory.report import MemoryReport
from revbifpn.reversible import ReversibleSequential, set_exact, set_reversible

Size = tuple[int, int]


class SubjectError(ValueError):
    """Something that was named cannot be profiled; the message says why and what would."""


@dataclass(frozen=True)
class Settings:
    """How steps are run; see :func:`.profile_training`. The optimizer ``"auto"`` is the subject's own."""

    optimizer: str | None = "auto"
    device: str = "cpu"
    method: str = "predict"
    autocast: torch.dtype | None = None
    channels_last: bool = False
    snapshot: Path | None = None


class Subject(ABC):
    """A model that can be built and given a batch.

    Attributes:
        name: as the user named it.
        family: models of one kind, joined in plots.
        modes: ways to treat its activations, the usual one first.
        image: height and width that it is made for.
        batch, optimizer: what a config trains it with; 16 and SGD for others.
        top1: published ImageNet accuracy in percent, if known.
    """

    name: str
    family: str
    image: Size
    batch = 16
    optimizer = "sgd"
    top1: float | None = None
    fixed_size = False
    _built: tuple[Size | None, nn.Module] | None = None

    @abstractmethod
    def build(self, image: Size) -> nn.Module:
        """A new model in training mode, in its usual mode."""

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """See above."""
        return ("reversible", "exact", "stored") if self._is_reversible else ("stored", *self._checkpointing)

    def model(self, mode: str, image: Size) -> nn.Module:
        """The model in a mode. Models are kept for the next call; sizes matter only to those with ``fixed_size``."""
        if mode not in self.modes:
            raise SubjectError(f"{self.name} has no mode {mode!r}: choose from {', '.join(self.modes)}")
        model = self._kept(image)
        if self._is_reversible:
            set_reversible(model, mode != "stored")
            set_exact(model, mode == "exact")
        elif "checkpointing" in self.modes:
            model.set_grad_checkpointing(mode == "checkpointing")  # type: ignore[operator]
        return model

    def inputs(self, batch: int, image: Size) -> Inputs:
        """A batch, with meta tensors for what may be large."""
        return torch.empty(batch, 3, *image, device="meta")

    def loss(self, outputs: Any) -> Tensor:
        """Cross entropy for logits, the mean for anything else."""
        if isinstance(outputs, Tensor) and outputs.ndim == 2:
            return F.cross_entropy(outputs, torch.zeros(outputs.shape[0], dtype=torch.long, device=outputs.device))
        return mean_of_outputs(outputs)

    def stand_ins(self, model: nn.Module) -> Any:
        """A context in which the model's step needs no values."""
        return nullcontext()

    def release(self) -> None:
        """Let the model go; the next use builds it anew."""
        self._built = None

    def _kept(self, image: Size) -> nn.Module:
        key = image if self.fixed_size else None
        if self._built is None or self._built[0] != key:
            self._built = (key, self.build(image))
        return self._built[1]

    @cached_property
    def _is_reversible(self) -> bool:
        return any(isinstance(m, ReversibleSequential) for m in self._kept(self.image).modules())

    @cached_property
    def _checkpointing(self) -> tuple[str, ...]:
        model = self._kept(self.image)
        if not hasattr(model, "set_grad_checkpointing"):
            return ()
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
            model.set_grad_checkpointing(False)  # type: ignore[operator]
        except (AssertionError, NotImplementedError):
            return ()
        return ("checkpointing",)


class TimmSubject(Subject):
    """A timm model by name."""

    def __init__(self, name: str) -> None:
        if not timm.is_model(name.split(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
            raise SubjectError(
                f"unknown model {name!r}"
                + (f": did you mean {', '.join(near)}?" if near else "")
                + " Give a timm model name (timm.list_models()), an MMEngine config file, or module:callable"
            )
        self.name = name
        self.family = name.split("_")[0] if not name.startswith("tf_") else name.split("_")[1]
        cfg = timm.get_pretrained_cfg(name)
        self.image = tuple(cfg.input_size[1:]) if cfg is not None else (224, 224)  # type: ignore[assignment]
        self.fixed_size = bool(cfg is not None and cfg.fixed_input_size)
        self.top1 = published_accuracy(name)

    def build(self, image: Size) -> nn.Module:
        return timm.create_model(self.name, **({"img_size": image} if self.fixed_size else {})).train()


def read_config(path: str) -> Any:
    """An MMEngine config: a file, or ``package::path`` for one that an installed package carries.

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
    """The model of an MMEngine config: an MMDetection detector, or an image classifier of this project."""

    def __init__(self, path: str) -> None:
        self.cfg = read_config(path)
        from mmengine.registry import MODELS, init_default_scope

        if "model" not in self.cfg:
            raise SubjectError(f"config {path} has no 'model'")
        self._configure(Path(path.partition("::")[2] or path).stem)
        self._registry = MODELS
        self._scope = init_default_scope

    @classmethod
    def of(cls, cfg: Any, name: str) -> ConfigSubject:
        """From a config that is loaded already."""
        from mmengine.registry import MODELS, init_default_scope

        self = cls.__new__(cls)
        self.cfg, self._registry, self._scope = cfg, MODELS, init_default_scope
        self._configure(name)
        return self

    def _configure(self, name: str) -> None:
        self.name = name
        self.family = str(self.cfg.model.type).split(".")[-1]
        self.image = _image_of(self.cfg)
        self.batch = (self.cfg.get("train_dataloader") or {}).get("batch_size", 2)
        self.optimizer = _optimizer_of(self.cfg) or self.optimizer
        self.is_detector = "roi_head" in self.cfg.model or "bbox_head" in self.cfg.model
        if self.cfg.model.get("name"):
            self.top1 = published_accuracy(self.cfg.model.name) if self.cfg.model.get("num_classes", 1000) == 1000 else None

    def build(self, image: Size) -> nn.Module:
        if self.cfg.get("default_scope"):
            self._scope(self.cfg.default_scope)
        model_cfg = self.cfg.model.copy()
        _drop_pretrained(model_cfg)
        try:
            return self._registry.build(model_cfg).train()
        except Exception as error:
            raise SubjectError(f"the model of {self.name} cannot be built: {type(error).__name__}: {error}") from error

    def inputs(self, batch: int, image: Size) -> Inputs:
        if self.is_detector:
            from revbifpn.memory.detection import detection_inputs

            return detection_inputs(batch, image, _num_classes(self.cfg.model))
        images = torch.empty(batch, 3, *image, device="meta")
        return {"inputs": images, "labels": torch.zeros(batch, dtype=torch.long), "mode": "loss"}

    def loss(self, outputs: Any) -> Tensor:
        from revbifpn.memory.detection import detection_loss

        return detection_loss(outputs)

    def stand_ins(self, model: nn.Module) -> Any:
        if not self.is_detector:
            return nullcontext()
        from revbifpn.memory.detection import without_values

        return without_values(model)


class CallableSubject(Subject):
    """``module:callable``: what the callable returns, called with an image batch."""

    image = (224, 224)
    family = "custom"

    def __init__(self, spec: str) -> None:
        self.name = spec
        module_name, _, attribute = spec.partition(":")
        try:
            self._make = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise SubjectError(f"{spec}: module {module_name!r} cannot be imported: {error}") from error
        except AttributeError as error:
            raise SubjectError(f"{spec}: module {module_name!r} has no {attribute!r}") from error

    def build(self, image: Size) -> nn.Module:
        try:
            model = self._make()
        except Exception as error:
            needs = f"{self.name}{inspect.signature(self._make)}"
            raise SubjectError(f"{needs} failed without arguments: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise SubjectError(f"{self.name} returned {type(model).__name__}, not a torch.nn.Module")
        return model.train()


def find_subject(spec: str) -> Subject:
    """The subject that a user means.

    Args:
        spec: a timm name, a config file (``.py``, or ``package::path`` for one inside an installed package), or
            ``module:callable``.

    Raises:
        SubjectError: if there is no such thing.
    """
    if spec.endswith((".py", ".yaml", ".yml", ".json")) or "::" in spec:
        return ConfigSubject(spec)
    if ":" in spec:
        return CallableSubject(spec)
    return TimmSubject(spec)


def profile_subject(subject: Subject, mode: str, batch: int, image: Size, settings: Settings) -> MemoryReport:
    """One step of a subject.

    Raises:
        SubjectError: if the step cannot be run, with the model's own reason.
        UnsupportedOperatorError: if it cannot be predicted.
    """
    model = subject.model(mode, image)
    inputs = subject.inputs(batch, image)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = _channels_last(inputs)
    try:
        with subject.stand_ins(model):
            return profile_training(
                model,
                inputs,
                loss=subject.loss,
                optimizer=subject.optimizer if settings.optimizer == "auto" else settings.optimizer,
                device=settings.device,
                method=settings.method,
                autocast=settings.autocast,
                snapshot=settings.snapshot,
                name=subject.name,
                mode=mode,
            )
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(f"{subject.name}: {error}. Measure it instead (--measure)") from error
    except (ValueError, AssertionError, RuntimeError, TypeError, IndexError) as error:
        height, width = image
        raise SubjectError(
            f"{subject.name} cannot run a training step with batch {batch} at {height}x{width}: "
            f"{type(error).__name__}: {error}"
        ) from error


def count_parameters(subject: Subject, image: Size) -> int:
    """Numbers in the model's parameters."""
    return sum(p.numel() for p in subject.model(subject.modes[0], image).parameters())


def count_macs(subject: Subject, image: Size) -> float:
    """Multiply-accumulates of the convolutions and matrix products of one image's forward pass."""
    model = subject.model(subject.modes[-1] if subject._is_reversible else subject.modes[0], image)
    execution = FakeExecution()
    counter = FlopCounterMode(display=False)
    batch = 2  # batch norm in training mode wants more than one value
    with fake_weights(model, execution), subject.stand_ins(model), _Executing(execution), counter:
        call_model(model, execution.fake_all(subject.inputs(batch, image)))
    return counter.get_total_flops() / 2 / batch


class _Executing(TorchDispatchMode):
    def __init__(self, execution: FakeExecution) -> None:
        super().__init__()
        self.execution = execution

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return self.execution(func, args, kwargs or {})


def _image_of(cfg: Any) -> Size:
    """Height and width of the training images, padded as the data preprocessor pads them."""
    scales = [step["scale"] for step in _pipeline_steps(cfg.get("train_dataloader")) if "scale" in step]
    sizes = [node["input_size"] for node in _nodes(cfg.get("train_dataloader")) if "input_size" in node]
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


def _pipeline_steps(node: Any) -> Iterator[dict[str, Any]]:
    yield from (step for step in _nodes(node) if str(step.get("type", "")).endswith("Resize"))


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _nodes(value)


def _drop_pretrained(node: Any) -> None:
    """Weights do not matter for memory, and reading them may need the network."""
    for part in _nodes(node):
        init = part.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            part["init_cfg"] = None
        if "checkpoint" in part and part.get("type") == "ImageClassifier":
            part["checkpoint"] = None


def _num_classes(node: Any) -> int:
    return min((part["num_classes"] for part in _nodes(node) if "num_classes" in part), default=1)


def _channels_last(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
    if isinstance(inputs, dict):
        return {key: _channels_last(value) for key, value in inputs.items()}
    return inputs
