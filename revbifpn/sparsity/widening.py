"""Making every layer of a network wider: convolutions, linear layers and batch norms, whatever the network calls them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from revbifpn.sparsity.ift_layers import init_layer
from revbifpn.sparsity.selection import is_depthwise, weight_rules


def widen(model: nn.Module, factor: float) -> nn.Module:
    """A copy of a network with each width times ``factor``, rounded down, freshly initialised.

    The image's channels and the classifier's outputs stay. Equal widths stay equal, so sums fit; concatenations may not.

    Raises:
        ValueError: for parameters of other layers, or groups that the wider layer cannot have.
    """
    wide = deepcopy(model)
    rules = weight_rules(wide)
    classifiers = {id(rule.module) for rule in rules if rule.reason == "classifier"}
    first = next((m for m in wide.modules() if isinstance(m, nn.Conv2d)), None)
    for rule in rules:
        if not isinstance(rule.module, nn.Conv2d | nn.Linear | _BatchNorm):
            raise ValueError(
                f"{type(model).__name__} cannot be widened: {rule.name} belongs to a {type(rule.module).__name__}, and "
                "convolutions, linear layers and batch norms alone are known. Make it of a wider configuration yourself"
            )
    for name, module in wide.named_modules():
        if isinstance(module, nn.Conv2d):
            _widen_conv(name, module, factor, module is first)
        elif isinstance(module, nn.Linear):
            module.in_features = int(module.in_features * factor)
            if id(module) not in classifiers:
                module.out_features = int(module.out_features * factor)
            _renew(module, weight=(module.out_features, module.in_features), bias=(module.out_features,))
        elif isinstance(module, _BatchNorm):
            module.num_features = int(module.num_features * factor)
            shape = (module.num_features,)
            _renew(module, weight=shape, bias=shape, running_mean=shape, running_var=shape)
        else:
            continue
        init_layer(module)
    if callable(init := getattr(wide, "init_weights", None)):
        with torch.no_grad():
            init()
    _describe(wide, factor)
    return wide


def _widen_conv(name: str, conv: nn.Conv2d, factor: float, reads_image: bool) -> None:
    depthwise = is_depthwise(conv)
    inputs = conv.in_channels if reads_image else int(conv.in_channels * factor)
    outputs = int(conv.out_channels * factor)
    groups = inputs if depthwise else conv.groups
    if inputs % groups or outputs % groups:
        raise ValueError(f"{name} has {groups} groups, which {inputs} and {outputs} channels cannot be divided into")
    conv.in_channels, conv.out_channels, conv.groups = inputs, outputs, groups
    _renew(conv, weight=(outputs, inputs // groups, *conv.kernel_size), bias=(outputs,))


def _renew(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name)
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(old.detach().new_empty(shape), old.requires_grad))
        elif old is not None:
            setattr(module, name, old.new_empty(shape))


def _describe(model: Any, factor: float) -> None:
    """What timm's models say of their widths."""
    for name in ("num_features", "head_hidden_size"):
        if isinstance(getattr(model, name, None), int):
            setattr(model, name, int(getattr(model, name) * factor))
    if isinstance(info := getattr(model, "feature_info", None), list):
        for entry in info:
            entry["num_chs"] = int(entry["num_chs"] * factor)
