"""Which weights of a network become sparse, and why each of the others stays dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn


@dataclass(frozen=True)
class WeightRule:
    """What becomes of one weight.

    Attributes:
        name: as in ``named_parameters``.
        parameter: the weight.
        module: the layer that it belongs to.
        reason: why it stays dense; None if it becomes sparse.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    reason: str | None


def weight_rules(model: nn.Module, dense: Sequence[str] = ()) -> list[WeightRule]:
    """Decide about every parameter of ``model``, in the order of ``named_parameters``.

    Weights of ``Conv2d`` and ``Linear`` become sparse (Sparse-IFT, arXiv 2303.11525). These stay dense:

    - norms, biases and whatever else is no weight of a ``Conv2d`` or ``Linear``;
    - the first convolution: the one that timm's ``pretrained_cfg["first_conv"]`` names, else the first ``Conv2d`` in the
      order of the modules (RevBiFPN has none for images of three channels: its first one is depthwise);
    - the classifier: what timm's ``get_classifier()`` returns, else the last layer if it is a ``Linear``;
    - depthwise convolutions: a kernel without its few weights is a channel lost;
    - what a pattern in ``dense`` matches.

    A model that is a single ``Conv2d`` or ``Linear`` is neither a first convolution nor a classifier.

    Args:
        dense: patterns of ``fnmatch`` (``"body.0.*"``, ``"*.se.*"``) for names of parameters or of modules.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    patterns = [dense] if isinstance(dense, str) else list(dense)
    owners = dict(_owners(model))
    for pattern in patterns:
        names = (text for name in owners for text in (name, name.rpartition(".")[0]))
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} for what stays dense matches no parameter of {type(model).__name__}: "
                "take a name of named_parameters(), with * for any part of it"
            )
    first, classifier = _first_convolutions(model), _classifiers(model)
    rules = []
    for name, (parameter, module) in owners.items():
        if not isinstance(module, nn.Conv2d | nn.Linear) or parameter is not module.weight:
            reason: str | None = "not the weight of a Conv2d or Linear"
        elif id(module) in first:
            reason = "first convolution"
        elif id(module) in classifier:
            reason = "classifier"
        elif is_depthwise(module):
            reason = "depthwise"
        else:
            module_name = name.rpartition(".")[0]
            matching = [p for p in patterns if fnmatchcase(name, p) or fnmatchcase(module_name, p)]
            reason = f"pattern {matching[0]}" if matching else None
        rules.append(WeightRule(name, parameter, module, reason))
    return rules


def select_weights(model: nn.Module, dense: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that become sparse, by their names in ``named_parameters``; :func:`weight_rules` says which.

    Args:
        dense: patterns of ``fnmatch`` for further weights that stay dense.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    return {rule.name: rule.parameter for rule in weight_rules(model, dense) if rule.reason is None}


def selection_table(model: nn.Module, dense: Sequence[str] = ()) -> str:
    """A table in Markdown: every weight of a ``Conv2d`` or ``Linear``, and why it stays dense if it does.

    Norms, biases and other parameters share one line.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    rules = weight_rules(model, dense)
    layers = [
        rule for rule in rules if isinstance(rule.module, nn.Conv2d | nn.Linear) and rule.parameter is rule.module.weight
    ]
    others = [rule for rule in rules if rule not in layers]
    lines = [
        f"| {rule.name} | {'x'.join(map(str, rule.parameter.shape))} | {rule.parameter.numel():,} | "
        f"{'sparse' if rule.reason is None else f'dense: {rule.reason}'} |"
        for rule in layers
    ]
    total = sum(rule.parameter.numel() for rule in rules)
    sparse = sum(rule.parameter.numel() for rule in rules if rule.reason is None)
    lines.append(
        f"| {len(others)} norms, biases and others | | {sum(rule.parameter.numel() for rule in others):,} | dense |",
    )
    share = 100 * sparse / total if total else 0.0
    lines.append(f"| all | | {total:,} | {sparse:,} ({share:.1f}%) become sparse |")
    return "\n".join(["| parameter | shape | weights | becomes |", "| --- | --- | --- | --- |", *lines])


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output of a convolution reads one input channel."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def _owners(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Parameter, nn.Module]]]:
    """Each parameter's name and the module that holds it; a shared one once, as ``named_parameters`` does."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{prefix}.{name}" if prefix else name), (parameter, module)


def _first_convolutions(model: nn.Module) -> set[int]:
    if isinstance(model, nn.Conv2d):
        return set()
    for owner in model.modules():
        names = (getattr(owner, "pretrained_cfg", None) or {}).get("first_conv") or ()
        modules = dict(owner.named_modules())
        named = [modules[name] for name in ([names] if isinstance(names, str) else names) if name in modules]
        if found := {id(module) for module in named if isinstance(module, nn.Conv2d | nn.Linear)}:
            return found
    return {id(module) for module in [m for m in model.modules() if isinstance(m, nn.Conv2d)][:1]}


def _classifiers(model: nn.Module) -> set[int]:
    if isinstance(model, nn.Linear):
        return set()
    owners = [cast(Any, module) for module in model.modules() if callable(getattr(module, "get_classifier", None))]
    heads = [owner.get_classifier() for owner in owners]
    if heads:
        parts = [part for head in heads for part in (head if isinstance(head, tuple | list) else [head])]
        return {id(module) for part in parts if isinstance(part, nn.Module) for module in part.modules()}
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return {id(layers[-1])} if layers and isinstance(layers[-1], nn.Linear) else set()
