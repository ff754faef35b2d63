"""timm's optimizers with weight decay filter and layer-wise learning rates, and autocast, as MMEngine's optimizer wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from timm.optim import create_optimizer_v2
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimWrapperConstructor:
    """Makes the optimizer with ``timm.optim.create_optimizer_v2``.

    In a config::

        optim_wrapper = dict(
            type="OptimWrapper",
            constructor="TimmOptimWrapperConstructor",
            optimizer=dict(opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75),
            clip_grad=dict(max_norm=1.0),
            accumulative_counts=2,
        )

    Biases and norms get no weight decay (``filter_bias_and_bn=False`` in ``optimizer`` changes that). With ``layer_decay``
    each layer's learning rate is multiplied by ``layer_decay ** (layers after it)``; MMEngine's schedules keep the ratios.

    Args:
        optim_wrapper_cfg: the config above; what is not ``optimizer`` goes to the wrapper.
        paramwise_cfg: not supported: timm's arguments take its place.

    Raises:
        ValueError: if ``paramwise_cfg`` is given.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(
                f"TimmOptimWrapperConstructor takes no paramwise_cfg, got {paramwise_cfg}: use timm's arguments "
                "(layer_decay, filter_bias_and_bn) in optimizer"
            )
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Make the optimizer of a model's ``network`` or ``backbone`` (of the model, if it has neither), and its wrapper."""
        inner = model.module if is_model_wrapper(model) else model
        network = getattr(inner, "network", None) or getattr(inner, "backbone", inner)
        optimizer = create_optimizer_v2(network, **self.optimizer_cfg)
        for group in optimizer.param_groups:
            # timm leaves it to its own schedulers to apply this; MMEngine's multiply the group's initial rate.
            group["lr"] *= group.get("lr_scale", 1.0)
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision without loss scaling, for bfloat16 on any device; MMEngine's ``AmpOptimWrapper`` wants a GPU.

    Args:
        dtype: name of the type that autocast computes in.
        kwargs: those of MMEngine's ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass, and do what every wrapper does."""
        with super().optim_context(model), autocast(dtype=self.dtype):
            yield
