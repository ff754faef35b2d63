"""timm models: ``timm.create_model("revbifpn_s0")`` to ``"revbifpn_s6"`` (registered by ``import revbifpn``)."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    FeatureGraphNet,
    FeatureHookNet,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from timm.models import _builder as timm_builder
from timm.models._features import FeatureGetterNet
from torch import nn

from revbifpn.models.classifier import RevBiFPN, checkpoint_filter_fn
from revbifpn.models.published_weights import PUBLISHED, fetch_published
from revbifpn.models.pyramid import Body
from revbifpn.models.variants import SIZE_DIVISOR, VARIANTS
from revbifpn.reversible import set_reversible

__all__ = [f"revbifpn_{name}" for name in VARIANTS]

register_notrace_module(Body)  # one node of a torch.fx graph, reversible in it too


def _cfg(name: str) -> dict[str, Any]:
    size = VARIANTS[name].image_size
    return {
        "url": PUBLISHED[name].url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // SIZE_DIVISOR, size // SIZE_DIVISOR),
        # How the published accuracies were evaluated is not stated; the authors used timm's scripts, these are its defaults.
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": (),  # the stem has no weights, or checkpoint_filter_fn adapts them
        "classifier": "head.fc",
        "license": "bsd-3-clause",  # of the authors' repository; the weights carry no statement of their own
        "origin_url": "https://github.com/CerebrasResearch/RevBiFPN",
        "paper_name": "RevBiFPN: The Fully Reversible Bidirectional Feature Pyramid Network",
        "paper_ids": "arXiv:2206.14098",
    }


class _SwitchesMemory(nn.Module):
    """timm's memory switch for feature wrappers, with the meaning that it has for RevBiFPN itself."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Reversible mode; False stores activations."""
        set_reversible(self, enable)


class RevBiFPNFeatures(_SwitchesMemory, FeatureGetterNet):
    """``features_only=True``: the levels by ``forward_intermediates``."""


class RevBiFPNHookFeatures(_SwitchesMemory, FeatureHookNet):
    """``features_only=True, feature_cls="hook"``."""


class RevBiFPNGraphFeatures(_SwitchesMemory, FeatureGraphNet):
    """``features_only=True, feature_cls="fx"``."""


_FEATURE_CLASSES = {"getter": RevBiFPNFeatures, "hook": RevBiFPNHookFeatures, "fx": RevBiFPNGraphFeatures}


def _feature_class(kind: str | type[nn.Module]) -> type[nn.Module]:
    if not isinstance(kind, str):
        return kind
    if kind.lower() not in _FEATURE_CLASSES:
        known = ", ".join(map(repr, _FEATURE_CLASSES))
        raise ValueError(f"feature_cls must be one of {known}, got {kind!r}: RevBiFPN is no chain of modules to cut in pieces")
    return _FEATURE_CLASSES[kind.lower()]


default_cfgs = generate_default_cfgs({f"revbifpn_{name}.cerebras_in1k": _cfg(name) for name in VARIANTS})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    feature_cfg: dict[str, Any] = {
        "out_indices": (0, 1, 2, 3),
        "feature_cls": "getter",
        **(kwargs.pop("feature_cfg", None) or {}),
    }
    for arguments in (feature_cfg, kwargs):
        if "feature_cls" in arguments:
            arguments["feature_cls"] = _feature_class(arguments["feature_cls"])
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg = resolve_pretrained_cfg(f"revbifpn_{name}", kwargs.get("pretrained_cfg"), overlay)
    named_elsewhere = cfg.file or cfg.state_dict or cfg.hf_hub_id or cfg.source
    fetched = pretrained and not named_elsewhere and cfg.url == PUBLISHED[name].url
    if fetched:  # timm would not check the sha256
        progress = getattr(timm_builder, "_DOWNLOAD_PROGRESS", False)
        overlay["file"] = str(fetch_published(name, kwargs.get("cache_dir"), progress))
    model: nn.Module = build_model_with_cfg(
        partial(RevBiFPN, name),
        f"revbifpn_{name}",
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **kwargs,
    )
    if fetched:  # where the file lies on this machine is no property of the model
        for module in model.modules():
            getattr(module, "pretrained_cfg", {}).pop("file", None)
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
