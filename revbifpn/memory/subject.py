"""A model that can be profiled: how it is built, what a batch of it is, and in which modes it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.memory.modes import check_mode, has_budgets, modes_of, set_mode
from revbifpn.memory.profile import Inputs, mean_of_outputs
from revbifpn.models import BudgetError

#: Height and width in pixels.
Size = tuple[int, int]


class SubjectError(ValueError):
    """What a user named cannot be profiled; the message says why, and what can."""


class Subject(ABC):
    """A model that can be built and given a batch.

    Attributes:
        name: as the user named it, without a mode.
        family: what models of one kind share; plots give a family one colour.
        image: height and width that the model is made for.
        batch: samples in a step, by default: what a config trains with, 16 for other models.
        optimizer: timm's name of the optimizer, by default: the config's, SGD with momentum for other models.
        fixed_size: whether the model has to be built for the size of its images.
        top1: published top-1 accuracy on ImageNet, in percent; None if it is unknown or does not apply.
        box_ap: published box AP on COCO val2017; None if it is unknown or does not apply.
    """

    name: str
    family: str
    image: Size
    batch: int = 16
    optimizer: str = "sgd"
    fixed_size: bool = False
    top1: float | None = None
    box_ap: float | None = None
    _built: tuple[Size | None, nn.Module] | None = None

    @abstractmethod
    def build(self, image: Size) -> nn.Module:
        """Make a new model in training mode, in its usual mode.

        Raises:
            SubjectError: if that fails, with the reason.
        """

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """The ways to treat its activations, the usual one first; see :func:`.modes_of`."""
        return modes_of(self._kept(self.image))

    @cached_property
    def has_budgets(self) -> bool:
        """Whether it takes activation budgets as modes; see :func:`.has_budgets`."""
        return has_budgets(self._kept(self.image))

    def check_mode(self, mode: str) -> None:
        """Make sure that the subject has a mode.

        Raises:
            SubjectError: if it does not; the message names the modes that it has.
        """
        try:
            check_mode(mode, self.modes, self.has_budgets)
        except ValueError as error:
            raise SubjectError(f"{self.name} has {error}") from None

    def model(self, mode: str, image: Size, batch: int | None = None) -> nn.Module:
        """Return the model, switched to a mode. It is kept, and the next call returns the same object.

        Args:
            mode: one of :attr:`modes`, or a budget as in ``"budget=0.25"``.
            image: height and width; only a subject with :attr:`fixed_size` is built anew for another size.
            batch: samples in a step, for a budget; without them the first step plans it.

        Raises:
            SubjectError: if the subject does not have the mode, or cannot be built.
        """
        self.check_mode(mode)
        model = self._kept(image)
        try:
            set_mode(model, mode, None if batch is None else image, batch)
        except BudgetError as error:
            raise SubjectError(f"{self.name}: {error}") from None
        return model

    def inputs(self, batch: int, image: Size) -> Inputs:
        """Return what the model is called with; tensors that may be large are on the ``meta`` device."""
        return torch.empty(batch, 3, *image, device="meta")

    def loss(self, outputs: Any) -> Tensor:
        """Cross entropy for logits, the mean for anything else."""
        if isinstance(outputs, Tensor) and outputs.ndim == 2:
            return F.cross_entropy(outputs, torch.zeros(outputs.shape[0], dtype=torch.long, device=outputs.device))
        return mean_of_outputs(outputs)

    def stand_ins(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which a step of the model needs no values of what its network computes."""
        return nullcontext()

    def release(self) -> None:
        """Let the kept model go; the next use builds it anew."""
        self._built = None

    def _kept(self, image: Size) -> nn.Module:
        key = image if self.fixed_size else None
        if self._built is None or self._built[0] != key:
            self._built = (key, self.build(image))
        return self._built[1]
