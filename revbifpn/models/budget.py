"""Activation budgets of whole models: planned on a training step that is predicted, for their image and batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from revbifpn.models.blocks import repeat_channels
from revbifpn.reversible import set_reversible
from revbifpn.reversible.budget import Budget, BudgetError, Candidate, find_candidates
from revbifpn.reversible.choice import Always, Choice
from revbifpn.reversible.peak import FakeStep
from revbifpn.reversible.units import format_bytes

if TYPE_CHECKING:
    from revbifpn.models.pyramid import RevBiFPNPyramid


def plan_budget(model: RevBiFPNPyramid, asked: float | int, like: Tensor) -> Budget:
    """Predict what a training step of ``model`` takes, and which edges to store.

    Args:
        asked: see :func:`.read_budget`.
        like: of the images' shape, (N, in_chans, H, W), and memory format; it may be a meta tensor.

    Raises:
        BudgetError: if it is less than what the step takes with nothing stored.
    """

    def candidates(image: Tensor) -> list[Candidate]:
        with torch.no_grad():
            streams = (repeat_channels(model.stem(image), model.body.slots),)
            return find_candidates(list(model.body), streams, model.readout(model.kept_levels), len(peaks.links))

    with _as_it_was(model), torch.random.fork_rng(devices=[]):
        model.train()
        step = FakeStep(model, like)
        set_reversible(model, True)
        peaks = step.activation_peaks(model.forward)
        model.body.budget = Always(Choice(whole=True))
        whole_peaks = step.activation_peaks(model.forward)
        found = step.run(candidates)
        set_reversible(model, False)
        stored = step.activation_peaks(model.forward).highest
    shape = like.shape
    budget = Budget(asked, shape[0] * shape[2] * shape[3], peaks, whole_peaks, stored, found)
    minimum = peaks.highest
    if budget.limit < minimum:
        raise BudgetError(
            f"activation budget {asked if isinstance(asked, float) else format_bytes(asked)}: a batch of {shape[0]} at "
            f"{shape[2]}x{shape[3]} takes at least {format_bytes(minimum)}, a fraction of {minimum / stored:.3f} of stored "
            "mode's; 0 asks for this minimum"
        )
    return budget


@contextmanager
def _as_it_was(model: RevBiFPNPyramid) -> Iterator[None]:
    """Put train and eval mode, and the reversible mode, of every module back, and the budget."""
    before = [(module, module.training, getattr(module, "reversible", None)) for module in model.modules()]
    budget = model.body.budget
    try:
        yield
    finally:
        model.body.budget = budget
        for module, training, reversible in before:
            module.training = training
            if reversible is not None:
                module.reversible = reversible


def set_activation_budget(
    model: nn.Module,
    budget: float | str,
    image_size: int | tuple[int, int] | None = None,
    batch: int | None = None,
) -> nn.Module:
    """Choose the activation budget of every RevBiFPN inside ``model``; returns ``model``.

    Args:
        budget, image_size, batch: see :meth:`.RevBiFPNPyramid.set_activation_budget`.

    Raises:
        BudgetError: for a budget that is none or too small, or if there is no RevBiFPN in ``model``.
    """
    pyramids = [module for module in model.modules() if hasattr(module, "set_activation_budget")]
    if not pyramids:
        raise BudgetError(f"an activation budget is set on a RevBiFPN, and there is none in {type(model).__name__}")
    for pyramid in pyramids:
        pyramid.set_activation_budget(budget, image_size, batch)  # type: ignore[operator]
    return model
