"""What a detector's checkpoint says about itself: its classes, whether it has a mask head, and which model it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from revbifpn.models.checkpoints import CheckpointError, check_state_dict
from revbifpn.training.checkpoints import load_from_weights_only
from revbifpn.training.detection.heads import leave_out_mask_head, set_classes


@dataclass(frozen=True)
class DetectorCheckpoint:
    """A checkpoint that MMEngine's Runner wrote, without its values.

    Attributes:
        source: the file, or its address.
        state_dict: keys and shapes, on the ``meta`` device.
        classes: names, in the order of the labels; None where the file has none.
    """

    source: str
    state_dict: dict[str, Tensor]
    classes: tuple[str, ...] | None

    @classmethod
    def read(cls, source: str) -> DetectorCheckpoint:
        """Read a file, or what is behind an address.

        Raises:
            FileNotFoundError, CheckpointError: if it is missing, damaged, or no checkpoint of a training.
        """
        content = load_from_weights_only(source, map_location="meta")
        state_dict = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(state_dict, dict):
            raise CheckpointError(f"{source} is no checkpoint of a detector's training: it has no state_dict")
        meta: dict[str, Any] = (content.get("meta") or {}).get("dataset_meta") or {}
        classes = meta.get("classes") or meta.get("CLASSES")
        return cls(source, state_dict, tuple(classes) if classes else None)

    @property
    def has_masks(self) -> bool:
        """Whether there are weights of a mask head."""
        return any(".mask_head." in f".{key}" for key in self.state_dict)

    def fit_config(self, cfg: Any) -> None:
        """Give a config's detector the checkpoint's classes, and take its mask head away if the checkpoint has none.

        Raises:
            ConfigError: if the config's detector cannot be fitted so.
        """
        if self.classes is not None:
            set_classes(cfg, self.classes)
        if not self.has_masks:
            leave_out_mask_head(cfg)

    def check_fits(self, model: nn.Module) -> None:
        """Check that a detector has exactly these weights; MMEngine would load what fits, and leave the rest at random.

        Raises:
            CheckpointError: naming what differs.
        """
        inner: Any = model.module if is_model_wrapper(model) else model
        check_state_dict(inner, self.state_dict, self.source)
