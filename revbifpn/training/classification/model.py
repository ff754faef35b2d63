"""A timm model with timm's loss and Mixup as MMEngine's model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import create_classification_loss
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import revbifpn  # noqa: F401  (registers the timm models)
from revbifpn.models.checkpoints import load_weights
from revbifpn.sparsity import sparse_ift as transform


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Turns uint8 images into normalized floats on the device, and in training erases parts of them at random.

    Args:
        mean, std: of each channel, for values in 0..1.
        channels_last: memory format of the images.
        random_erasing: arguments of timm's ``RandomErasing``, such as ``dict(probability=0.2, mode="pixel")``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        channels_last: bool = False,
        random_erasing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.random_erasing = random_erasing

    def forward(self, data: dict[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        """(N, C, H, W) uint8 under ``inputs`` -> normalized float32; everything moved to the device."""
        data = {key: value.to(self.device, non_blocking=True) for key, value in data.items()}
        images = data["inputs"].float().sub_(self.mean).div_(self.std)
        if training and self.random_erasing:
            images = RandomErasing(**self.random_erasing, device=images.device.type)(images)
        return data | {"inputs": images.contiguous(memory_format=self.memory_format)}


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Any timm model as a classifier for MMEngine's Runner. The network is the attribute ``backbone``.

    So the checkpoints' keys have the prefix ``backbone.``, and a detector loads them as they are.

    Args:
        name: timm's name, such as ``"revbifpn_s0"``.
        num_classes: outputs of the classifier.
        model_args: further arguments of ``timm.create_model``, such as ``dict(drop_path_rate=0.1, exact=True)``.
        loss: arguments of ``timm.loss.create_classification_loss``, such as ``dict(loss_type="ce", smoothing=0.1)``.
        mixup: arguments of ``timm.data.Mixup``; None for neither Mixup nor CutMix. Label smoothing is the loss's.
        checkpoint: weights to begin with, a file or an address: published, timm's or this project's layout, for any number of
            image channels (see :mod:`revbifpn.models.checkpoints`).
        remake_classifier: where ``checkpoint`` has another number of classes, begin with a fresh linear layer and say so;
            False refuses it.
        norm_eval: keep batch norms in eval mode, with the statistics of ``checkpoint``: for small sets and small batches.
        data_preprocessor: config of :class:`ImagePreprocessor`.
        ema: where ``checkpoint`` has weights and their exponential moving average, True begins with the average.
        allow_non_finite: take a ``checkpoint`` with weights that are NaN or infinite too.
        sparse_ift: arguments of :func:`revbifpn.sparsity.sparse_ift`, such as ``dict(kind="wide", sparsity=0.75)``: the
            network is transformed before a ``checkpoint`` is loaded; ``sparsity=dict(method=...)`` in the config trains it
            sparse.

    Raises:
        FileNotFoundError, CheckpointError: if ``checkpoint`` cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        model_args: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        mixup: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        remake_classifier: bool = True,
        norm_eval: bool = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        ema: bool = True,
        allow_non_finite: bool = False,
        sparse_ift: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(type="ImagePreprocessor"))
        self.num_classes = num_classes
        self.norm_eval = norm_eval
        self.backbone = timm.create_model(name, num_classes=num_classes, **(model_args or {}))
        self.sparse_ift: tuple[float, tuple[str, ...]] | None = None  # the sparsity it needs, and what stays dense
        if sparse_ift:
            transformed = transform(self.backbone, **sparse_ift)
            self.backbone, self.sparse_ift = transformed.model, (transformed.sparsity, transformed.dense)
        if getattr(self.data_preprocessor, "memory_format", None) == torch.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        loss = dict(loss or {})
        self.smoothing = loss.get("smoothing", 0.0)
        self.mixup = None
        if mixup:
            # Targets that are rows already, and smoothed: here classes and class probabilities go the same way.
            self.mixup = Mixup(**mixup, label_smoothing=0.0, num_classes=num_classes, multi_label=True)
        self.loss_options = loss
        self.criterion = create_classification_loss(**loss, soft_targets=self.mixup is not None)
        if checkpoint:
            self._load(checkpoint, ema, allow_non_finite, remake_classifier)

    def init_weights(self) -> None:
        """Do nothing: the network was initialized or loaded when it was made, and MMEngine would initialize it again."""

    def train(self, mode: bool = True) -> ImageClassifier:
        """Switch to training mode, except norms that ``norm_eval`` holds in eval mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, indices: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor | None]]:
        """Run the network on normalized images (N, C, H, W) with labels (N,), or class probabilities (N, num_classes).

        The mode ``"tensor"`` returns logits (N, num_classes), ``"loss"`` a dict with the scalar ``loss``, and ``"predict"`` a
        list of one dict with ``logits``, ``labels`` and ``indices``.

        Raises:
            ValueError: for another mode.
        """
        if mode == "loss":
            assert labels is not None
            inputs, targets = self._mix(inputs, labels)
            return {"loss": self._criterion_of(targets)(self.backbone(inputs), targets)}
        if mode == "predict":
            return [{"logits": self.backbone(inputs), "labels": labels, "indices": indices}]
        if mode == "tensor":
            logits: Tensor = self.backbone(inputs)
            return logits
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def _mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.is_floating_point():
            labels = labels * (1 - self.smoothing) + self.smoothing / self.num_classes
        elif self.mixup is not None:
            labels = mixup_target(labels, self.num_classes, 1.0, self.smoothing)
        if self.mixup is None or len(inputs) % 2:
            return inputs, labels  # timm mixes pairs: an odd last batch of an epoch goes unmixed rather than stopping the run
        mixed: tuple[Tensor, Tensor] = self.mixup(inputs, labels)
        return mixed

    def _criterion_of(self, targets: Tensor) -> nn.Module:
        if targets.is_floating_point() and self.mixup is None:
            soft: nn.Module = create_classification_loss(**self.loss_options, soft_targets=True).to(targets.device)
            return soft
        return self.criterion

    def _load(self, checkpoint: str, ema: bool, allow_non_finite: bool, remake_classifier: bool) -> None:
        names = self.backbone.pretrained_cfg.get("classifier") or ()
        loaded = load_weights(
            self.backbone,
            checkpoint,
            classifier=[f"{name}." for name in ((names,) if isinstance(names, str) else names)],
            remake_classifier=remake_classifier,
            ema=ema,
            allow_non_finite=allow_non_finite,
        )
        if classes := loaded.fitted.classes:
            message = f"{checkpoint} has {classes[0]} classes, the model {classes[1]}: the classifier is a fresh one"
            print_log(message, logger="current", level=logging.WARNING)
        print_log(str(loaded), logger="current")
