"""timm models: ``timm.create_model("revbifpn_s0")`` to ``"revbifpn_s6"`` (registered by ``import revbifpn``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from revbifpn.models.checkpoints import convert_checkpoint
from revbifpn.models.classifier import RevBiFPN
from revbifpn.models.variants import VARIANTS

__all__ = [f"revbifpn_{name}" for name in VARIANTS]

_URL = "https://cerebras-public.s3.us-west-2.amazonaws.com/revbifpn/revbifpn_{}.pth.tar"


def _cfg(name: str) -> dict[str, Any]:
    size = VARIANTS[name].image_size
    return {
        "url": _URL.format(name),
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": (),  # the stem has no weights
        "classifier": "head.fc",
        "origin_url": "https://arxiv.org/abs/2206.14098",
        "paper_name": "RevBiFPN: The Fully Reversible Bidirectional Feature Pyramid Network",
        "paper_ids": "arXiv:2206.14098",
    }


default_cfgs = generate_default_cfgs({f"revbifpn_{name}.cerebras_in1k": _cfg(name) for name in VARIANTS})


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published or own key layout -> the model's."""
    return convert_checkpoint(state_dict)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        partial(RevBiFPN, name),
        f"revbifpn_{name}",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register_model
def revbifpn_s0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S0; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s0", pretrained, kwargs)


@register_model
def revbifpn_s1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S1; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s1", pretrained, kwargs)


@register_model
def revbifpn_s2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S2; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s2", pretrained, kwargs)


@register_model
def revbifpn_s3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S3; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s3", pretrained, kwargs)


@register_model
def revbifpn_s4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S4; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s4", pretrained, kwargs)


@register_model
def revbifpn_s5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S5; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s5", pretrained, kwargs)


@register_model
def revbifpn_s6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RevBiFPN-S6; ``kwargs`` are those of :class:`.RevBiFPN`, or timm's ``features_only`` and ``out_indices``."""
    return _create("s6", pretrained, kwargs)
