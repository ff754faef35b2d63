"""Ways to treat a model's activations in training, by the names that users write: ``revbifpn_s0:stored``."""

from __future__ import annotations

from torch import nn

from revbifpn.reversible import ReversibleSequential, set_exact, set_reversible

#: Every mode that a user can name. Which of them a model has depends on the model: see :func:`modes_of`.
MODES = ("reversible", "exact", "stored", "checkpointing")


def is_mode(text: str) -> bool:
    """Whether a text is the name of a mode, of whatever model."""
    return text in MODES


def modes_of(model: nn.Module) -> tuple[str, ...]:
    """The modes that a model has, the one that it is built in first.

    A model with reversible layers has ``"reversible"``, ``"exact"`` and ``"stored"``. Any other has ``"stored"`` and, if
    timm's ``set_grad_checkpointing`` works on it, ``"checkpointing"``.
    """
    if any(isinstance(module, ReversibleSequential) for module in model.modules()):
        return "reversible", "exact", "stored"
    return ("stored", "checkpointing") if _has_checkpointing(model) else ("stored",)


def set_mode(model: nn.Module, mode: str) -> None:
    """Switch a model to one of its modes, in place.

    Args:
        mode: one of :func:`modes_of` the model.

    Raises:
        ValueError: if the model does not have this mode.
    """
    modes = modes_of(model)
    if mode not in modes:
        raise ValueError(f"no mode {mode!r}: choose from {', '.join(modes)}")
    if "reversible" in modes:
        set_reversible(model, mode != "stored")
        set_exact(model, mode == "exact")
    elif "checkpointing" in modes:
        model.set_grad_checkpointing(mode == "checkpointing")  # type: ignore[operator]


def _has_checkpointing(model: nn.Module) -> bool:
    if not hasattr(model, "set_grad_checkpointing"):
        return False
    try:  # every timm model has the method; some refuse to switch it on
        model.set_grad_checkpointing(True)  # type: ignore[operator]
        model.set_grad_checkpointing(False)  # type: ignore[operator]
    except (AssertionError, NotImplementedError):
        return False
    return True
