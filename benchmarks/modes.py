"""Every network that is measured, in every mode that it has: the one place that makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.plain import PlainRevBiFPN
from revbifpn import RevBiFPN, set_exact, set_reversible
from revbifpn.models import VARIANTS

#: RevBiFPN's own modes. A budget is the fraction of stored mode's activations that may be kept.
BUDGETS = {"budget 0.1": 0.1, "budget 0.25": 0.25, "budget 0.5": 0.5}
OWN_MODES = ("reversible", *BUDGETS, "stored", "exact")
#: The ordinary network of the same layers.
PLAIN_MODES = ("plain", "plain checkpointed")
#: Networks of timm: as they are, and with timm's own checkpointing.
TIMM_MODES = ("stored", "checkpointed")


class NotThereError(RuntimeError):
    """A mode that this model, or this version of the engine, does not have."""


def modes_of(name: str) -> tuple[str, ...]:
    """The modes of a model by its timm name; of RevBiFPN the yardstick's too.

    Raises:
        ValueError: for a name that timm does not know.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm knows no model {name!r}")
    if variant_of(name):
        return (*PLAIN_MODES, *OWN_MODES)
    return TIMM_MODES if has_checkpointing(name) else TIMM_MODES[:1]


def variant_of(name: str) -> str | None:
    """``"revbifpn_s0"`` -> ``"s0"``; None for other networks."""
    variant = name.removeprefix("revbifpn_")
    return variant if variant in VARIANTS and variant != name else None


def image_size_of(name: str) -> int:
    """The side of the images that a model is trained with, in pixels."""
    if variant := variant_of(name):
        return VARIANTS[variant].image_size
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg is not None, name
    return int(cfg.input_size[-1])


def has_checkpointing(name: str) -> bool:
    """Whether timm can checkpoint the model (timm's HRNets refuse)."""
    with torch.device("meta"):
        model = timm.create_model(name)
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, RuntimeError):
        return False
    return True


def build(name: str, mode: str, batch: int, image_size: int, **options: Any) -> nn.Module:
    """A model in training mode, with the weights of seed 0, so that all modes of one model compute the same.

    Args:
        name: timm's name.
        mode: one of :func:`modes_of`.
        batch, image_size: of the images to come; budgets are planned for them.
        **options: for the model, such as ``num_classes`` or ``drop_rate``.

    Raises:
        NotThereError: if there is no such mode.
    """
    torch.manual_seed(0)
    variant = variant_of(name)
    if variant and mode in OWN_MODES:
        return in_mode(RevBiFPN(variant, **options), mode, batch, image_size).train()
    if variant and mode in PLAIN_MODES:
        plain = PlainRevBiFPN(variant, checkpointing=mode == "plain checkpointed", **options)
        plain.load_state_dict(RevBiFPN(variant, **options).state_dict())
        return plain.train()
    if variant or mode not in modes_of(name):
        raise NotThereError(f"{name} has no mode {mode!r}: it has {', '.join(modes_of(name))}")
    model = timm.create_model(name, **options)
    if mode == "checkpointed":
        model.set_grad_checkpointing(True)
    trained: nn.Module = model.train()
    return trained


def in_mode(model: RevBiFPN, mode: str, batch: int, image_size: int) -> RevBiFPN:
    """Switch ``model`` to one of :data:`OWN_MODES`; returns it.

    Raises:
        NotThereError: if this version of the engine has no activation budget.
    """
    set_reversible(model, mode != "stored")
    set_exact(model, mode == "exact")
    if mode in BUDGETS:
        if not hasattr(model, "set_activation_budget"):
            raise NotThereError(f"{mode}: this engine has no set_activation_budget yet")
        model.set_activation_budget(BUDGETS[mode], image_size=image_size, batch=batch)
    return model


def available(name: str, modes: Iterable[str], batch: int, image_size: int, **options: Any) -> dict[str, nn.Module]:
    """The model in each of ``modes``; what is not there is said in a line and left out."""
    models = {}
    for mode in modes:
        try:
            models[mode] = build(name, mode, batch, image_size, **options)
        except NotThereError as missing:
            print(f"left out: {missing}", flush=True)
    return models
