"""timm models: ``timm.create_model("revbifpn_s0")`` to ``"revbifpn_s6"`` (registered by ``import revbifpn``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from torch import Tensor, nn

from revbifpn.models.body import Body
from revbifpn.models.checkpoints import Checkpoint, Loaded, fit, read
from revbifpn.models.classifier import RevBiFPN
from revbifpn.models.published_weights import PUBLISHED
from revbifpn.models.variants import SIZE_DIVISOR, VARIANTS
from revbifpn.reversible import set_reversible
from revbifpn.reversible.memory_format import in_format
from revbifpn.reversible.streams import memory_format_of

__all__ = [f"revbifpn_{name}" for name in VARIANTS]

_logger = logging.getLogger(__name__)

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
        "first_conv": (),  # the stem has no weights, or they are adapted before timm sees them
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

    def forward(self, x: Tensor) -> list[Tensor] | dict[Any, Tensor]:
        """(N, in_chans, H, W) -> the levels, in the image's memory format; hooks see that which is computed in."""
        outputs = super().forward(x)
        memory_format = memory_format_of(x)
        if self.return_dict:
            return {name: in_format(level, memory_format) for name, level in outputs.items()}
        return [in_format(level, memory_format) for level in outputs]


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
    weights = _Weights(cfg, pretrained, kwargs)
    model: nn.Module = build_model_with_cfg(
        partial(RevBiFPN, name),
        f"revbifpn_{name}",
        pretrained,
        pretrained_cfg_overlay=overlay | weights.overlay,
        pretrained_filter_fn=weights.filter,
        feature_cfg=feature_cfg,
        **kwargs,
    )
    for module in model.modules() if weights.overlay else ():  # how they were loaded is no property of the model
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return model


class _Weights:
    """Takes timm's loading of ``pretrained=True`` through :mod:`revbifpn.models.checkpoints`.

    timm hands what it read to a filter. Where ``cfg`` names a file or an address the filter reads it, and timm is given an
    empty stand-in, as its "state_dict"; what only timm can read (its hub, its folders) is what the filter gets.

    Args:
        cfg: timm's ``PretrainedCfg``.
        kwargs: of ``create_model``; ``ema`` and ``allow_non_finite`` are taken out.
    """

    def __init__(self, cfg: Any, pretrained: bool, kwargs: dict[str, Any]) -> None:
        given = {key: kwargs.pop(key) for key in ("ema", "allow_non_finite") if key in kwargs}
        saved = kwargs.get("pretrained_model_args") or {}  # what the model was made with that timm saved
        if not pretrained and given.keys() - saved:
            raise ValueError(
                f"{' and '.join(given)}: for pretrained=True alone. Weights of another file: "
                "revbifpn.load_checkpoint(model, file, ema=..., allow_non_finite=...)"
            )
        self.cfg = cfg
        self.ema, self.allow_non_finite = given.get("ema", True), given.get("allow_non_finite", False)
        self.features = bool(kwargs.get("features_only"))
        self.folder = kwargs.get("cache_dir")
        read_by_timm = cfg.source in ("hf-hub", "local-dir") or cfg.state_dict or (cfg.hf_hub_id and not cfg.file)
        self.source = (cfg.file or cfg.url) if pretrained and not read_by_timm else None
        self.overlay = {"state_dict": {"": None}} if self.source else {}  # timm takes no dict that is quite empty

    def filter(self, state_dict: Mapping[str, Tensor], model: RevBiFPN) -> Mapping[str, Tensor]:
        """What timm loads into ``model``; it then leaves a classifier for other classes than ``cfg``'s out."""
        if self.source:
            progress = getattr(timm_builder, "_DOWNLOAD_PROGRESS", False)
            checkpoint = read(self.source, ema=self.ema, folder=self.folder, progress=progress)
        else:
            checkpoint = Checkpoint(f"the weights of {self.cfg.hf_hub_id or self.cfg.file or 'state_dict'}", dict(state_dict))
        classifier = f"{model.get_classifier(name_only=True)}."
        fitted = fit(
            checkpoint.state_dict,
            model,
            checkpoint.source,
            ignore=() if model.num_classes else (classifier,),
            optional=("head.",) if self.features else (),
            classifier=(classifier,),
            remake_classifier=self.features or model.num_classes != self.cfg.num_classes,
            allow_non_finite=self.allow_non_finite,
        )
        _logger.info("%s", Loaded(checkpoint, fitted))
        return fitted


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
