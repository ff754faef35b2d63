"""Ways to treat a model's activations in training, by the names that users write: ``revbifpn_s0:stored``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from revbifpn.models import set_activation_budget
from revbifpn.reversible import ReversibleSequential, set_exact, set_reversible

#: Every mode that a model can have by itself. Which of them it has depends on the model: see :func:`modes_of`.
MODES = ("reversible", "exact", "stored", "checkpointing")
#: Between reversible and stored there are as many modes as there are budgets; this is how they begin.
BUDGET = "budget="
#: What a user can write.
KNOWN = (*MODES, f"{BUDGET}0.25", f"{BUDGET}2GiB")


def is_mode(text: str) -> bool:
    """Whether a text is the name of a mode, of whatever model."""
    return text in MODES or text.startswith(BUDGET)


def modes_of(model: nn.Module) -> tuple[str, ...]:
    """The modes that a model has, the one that it is built in first; budgets are not listed (see :func:`has_budgets`).

    A model with reversible layers has ``"reversible"``, ``"exact"`` and ``"stored"``. Any other has ``"stored"`` and, if
    timm's ``set_grad_checkpointing`` works on it, ``"checkpointing"``.
    """
    if any(isinstance(module, ReversibleSequential) for module in model.modules()):
        return "reversible", "exact", "stored"
    return ("stored", "checkpointing") if _has_checkpointing(model) else ("stored",)


def has_budgets(model: nn.Module) -> bool:
    """Whether the model takes activation budgets, as RevBiFPN does."""
    return any(hasattr(module, "set_activation_budget") for module in model.modules())


def check_mode(mode: str, modes: Sequence[str], budgets: bool) -> None:
    """Make sure that a model with such ``modes``, and with ``budgets`` or without, has a mode.

    Raises:
        ValueError: if it does not; the message names those that it has.
    """
    if mode not in modes and not (budgets and mode.startswith(BUDGET)):
        known = (*modes, f"{BUDGET}FRACTION", f"{BUDGET}BYTES") if budgets else modes
        raise ValueError(f"no mode {mode!r}: choose from {', '.join(known)}")


def set_mode(model: nn.Module, mode: str, image: tuple[int, int] | None = None, batch: int | None = None) -> None:
    """Switch a model to one of its modes, in place.

    Args:
        mode: one of :func:`modes_of` the model, or a budget as in ``"budget=0.25"``.
        image, batch: height and width, and number of images, that a budget is planned for; without them the first training
            step plans it.

    Raises:
        ValueError: if the model does not have this mode, or for a budget that is none or too small.
    """
    modes = modes_of(model)
    check_mode(mode, modes, has_budgets(model))
    if "reversible" in modes:
        set_exact(model, True if mode == "exact" else "auto")
        budget = mode.removeprefix(BUDGET) if mode.startswith(BUDGET) else None
        if has_budgets(model):
            set_activation_budget(model, budget or 0, image, batch)
        if budget is None:
            set_reversible(model, mode != "stored")
    elif "checkpointing" in modes:
        cast(Any, model).set_grad_checkpointing(mode == "checkpointing")


def _has_checkpointing(model: nn.Module) -> bool:
    if not hasattr(model, "set_grad_checkpointing"):
        return False
    try:  # every timm model has the method; some refuse to switch it on
        cast(Any, model).set_grad_checkpointing(True)
        cast(Any, model).set_grad_checkpointing(False)
    except (AssertionError, NotImplementedError):
        return False
    return True
