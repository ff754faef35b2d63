"""ClipClassifier as MMEngine's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

import revbifpn  # noqa: F401  (registers the timm models)
from revbifpn.models.checkpoints import load_weights
from revbifpn.models.clips import ClipClassifier
from revbifpn.models.clips.classifier import Temporal


@MODELS.register_module()
class ClipPreprocessor(BaseDataPreprocessor):
    """Turns uint8 clips into normalized floats on the device.

    Args:
        mean, std: of each channel, for values in 0..1.
        channels_last: memory format of the frames.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """(N, T, C, H, W) uint8 under ``inputs`` -> normalized float32; everything moved to the device."""
        data = dict(self.cast_data(data))
        clips: Tensor = data["inputs"]
        frames = clips.flatten(0, 1).to(memory_format=self.memory_format).float().sub_(self.mean).div_(self.std)
        return data | {"inputs": frames.unflatten(0, clips.shape[:2])}


@MODELS.register_module()
class ClipRecognizer(BaseModel):
    """A :class:`.ClipClassifier` for MMEngine's Runner, as the attribute ``network``.

    Args:
        name: timm's name of the backbone, such as ``"revbifpn_s0"``.
        outputs, temporal, frames, temporal_args, drop_rate, frame_chunk, norm_eval, model_args: see :class:`.ClipClassifier`.
        checkpoint: the backbone's weights to begin with, a file or an address, as for :class:`.ImageClassifier`; its
            classifier is left out.
        data_preprocessor: config of :class:`ClipPreprocessor`.
        ema: where ``checkpoint`` has weights and their exponential moving average, True begins with the average.
        allow_non_finite: take a ``checkpoint`` with weights that are NaN or infinite too.

    Raises:
        FileNotFoundError, CheckpointError: if ``checkpoint`` cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str,
        outputs: Mapping[str, int | Mapping[str, Any]],
        temporal: Temporal = "mean",
        frames: int | None = None,
        temporal_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        frame_chunk: int | None = None,
        norm_eval: bool = False,
        model_args: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        ema: bool = True,
        allow_non_finite: bool = False,
    ) -> None:
        super().__init__(data_preprocessor or dict(type="ClipPreprocessor"))
        self.network = ClipClassifier(
            name, outputs, temporal, frames, temporal_args, drop_rate, frame_chunk, norm_eval, model_args
        )
        if getattr(self.data_preprocessor, "memory_format", None) == torch.channels_last:
            self.network.backbone.to(memory_format=torch.channels_last)
        if checkpoint:
            self._load(checkpoint, ema, allow_non_finite)

    def init_weights(self) -> None:
        """Do nothing: the network was initialized or loaded when it was made, and MMEngine would initialize it again."""

    def forward(
        self,
        inputs: Tensor,
        labels: Mapping[str, Tensor] | None = None,
        indices: Tensor | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run the network on normalized clips (N, T, C, H, W).

        The mode ``"tensor"`` returns each output's logits; ``"loss"`` a dict with the scalar ``loss_<output>`` of each, which
        MMEngine sums; ``"predict"`` a list of one dict with ``predictions`` and ``probabilities`` of each output, ``labels``
        and ``indices``.

        Raises:
            ValueError: for another mode.
        """
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
        logits: dict[str, Tensor] = self.network(inputs)
        if mode == "tensor":
            return logits
        if mode == "loss":
            assert labels is not None
            return {f"loss_{name}": loss for name, loss in self.network.losses(logits, labels).items()}
        predictions, probabilities = self.network.predict(logits), self.network.probabilities(logits)
        return [dict(predictions=predictions, probabilities=probabilities, labels=labels, indices=indices)]

    def _load(self, checkpoint: str, ema: bool, allow_non_finite: bool) -> None:
        names: Any = getattr(self.network.backbone, "pretrained_cfg", {}).get("classifier") or ()
        loaded = load_weights(
            self.network.backbone,
            checkpoint,
            ignore=[f"{name}." for name in ((names,) if isinstance(names, str) else names)],
            ema=ema,
            allow_non_finite=allow_non_finite,
        )
        print_log(str(loaded), logger="current")
