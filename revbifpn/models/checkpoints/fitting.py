"""Fitting a state dict to a model: layout, stem, what is left out and what the model keeps, and the checks before loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from revbifpn.models.blocks import MixChannels, adapt_stem_weight
from revbifpn.models.checkpoints.errors import CheckpointError, some
from revbifpn.models.checkpoints.layout import convert_checkpoint, find_variant


class Fitted(dict[str, Tensor]):
    """A state dict that has exactly the keys and shapes of a model.

    Attributes:
        left_out: the checkpoint's keys that were declared ignorable.
        kept: keys for which the model keeps its own tensors.
        adapted: how the stem was adapted, in words; empty where nothing was to do.
        classes: how many classes checkpoint and model have, where the classifier stays the model's own.
    """

    left_out: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    adapted: str = ""
    classes: tuple[int, int] | None = None


def fit(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    source: str,
    *,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    classifier: Sequence[str] = (),
    remake_classifier: bool = False,
    allow_non_finite: bool = False,
) -> Fitted:
    """Turn a state dict into one that ``model`` takes as it is, or refuse it. The model is not changed.

    Counts of batches that norms keep (``num_batches_tracked``) may be missing, as in torch: the model keeps its own.

    Args:
        state_dict: in the published or this project's layout.
        source: what it is called in messages.
        ignore: prefixes of keys that are left out.
        optional: prefixes of keys that may be missing: the model keeps its own tensors.
        classifier: prefixes of the last linear layer's keys.
        remake_classifier: where the checkpoint has another number of classes, the model keeps its own classifier.
        allow_non_finite: take weights that are NaN or infinite too.

    Raises:
        CheckpointError: if it does not fit, see :func:`adapt_stem`, :func:`check_state_dict` and :func:`check_finite`; or if
            it has another number of classes.
    """
    own = model.state_dict()
    converted = convert_checkpoint(state_dict)
    taken = {key: value for key, value in converted.items() if not key.startswith(tuple(ignore))}
    fitted = Fitted(adapt_stem(taken, model))
    fitted.left_out = tuple(key for key in converted if key not in taken)
    if fitted.get("stem.weight") is not taken.get("stem.weight"):
        fitted.adapted = f"stem adapted to images of {model.in_chans} channels"
    last = [key for key in own if key.startswith(tuple(classifier)) and key in fitted]
    other = [key for key in last if fitted[key].shape[:1] != own[key].shape[:1]]  # a row for each class
    if other:
        fitted.classes = len(fitted[other[0]]), len(own[other[0]])
        if not remake_classifier:
            theirs, ours = fitted.classes
            raise CheckpointError(f"{source} has {theirs} classes, the model {ours}. Nothing was loaded.")
    may_miss = tuple(key for key in own if key.endswith(".num_batches_tracked")) + tuple(optional)
    fitted.kept = tuple(k for k in own if k in other or (k not in fitted and k.startswith(may_miss)))
    fitted.update({key: own[key] for key in fitted.kept})
    check_state_dict(model, fitted, source)
    if not allow_non_finite:
        check_finite({key: value for key, value in fitted.items() if key not in fitted.kept}, source)
    return fitted


def adapt_stem(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit the stem of a state dict in this project's layout to the image channels of ``model``.

    A model without stem weights was trained on images of at most three channels (or as many as its stem has slots): what a
    model with more channels then needs is :class:`.MixChannels`'s initial weight. Another stem's columns are repeated.

    Returns:
        A new dict with the same tensors, but for the stem's.

    Raises:
        CheckpointError: if the state dict has stem weights and ``model``, whose image has few channels, has none.
    """
    adapted = dict(state_dict)
    stem, weight = getattr(model, "stem", None), adapted.get("stem.weight")
    if isinstance(stem, MixChannels):
        if weight is None:
            adapted["stem.weight"] = MixChannels(stem.in_channels, stem.out_channels).weight.detach()
        elif weight.ndim == 4 and weight.shape[1] != stem.in_channels:
            adapted["stem.weight"] = adapt_stem_weight(weight, stem.in_channels)
    elif isinstance(stem, nn.Identity) and weight is not None:
        raise CheckpointError(
            f"the checkpoint is of a model for images of {weight.shape[1]} channels, whose stem has weights; the model takes "
            f"{getattr(model, 'in_chans', None)} and has none: create it with in_chans={weight.shape[1]}"
        )
    return adapted


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has exactly the model's keys and shapes.

    Raises:
        CheckpointError: naming the keys that miss, are too many or have another shape, and the variant that would fit.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    wrong = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state_dict and state_dict[key].shape != expected[key].shape
    ]
    if not (missing or unexpected or wrong):
        return
    problems = [
        f"{len(keys)} {what}: {some(keys)}"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("tensors of another shape", wrong))
        if keys
    ]
    mine = getattr(getattr(model, "variant", None), "name", None)
    theirs = find_variant(state_dict)
    hint = (
        f"; it is a checkpoint of RevBiFPN-{theirs}, the model is RevBiFPN-{mine}"
        if mine and theirs not in (None, mine)
        else ""
    )
    raise CheckpointError(f"{source} does not fit the model{hint}: {'; '.join(problems)}. Nothing was loaded.")


def check_finite(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        CheckpointError: naming the first tensors that hold such values, and how to load them all the same.
    """
    bad = [key for key, value in state_dict.items() if _has_values(value) and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{source} has values that are NaN or infinite, in {len(bad)} tensors: {some(bad)}. Nothing was loaded; "
            "allow_non_finite=True loads them all the same"
        )


def _has_values(tensor: Tensor) -> bool:
    """Return whether values can be looked at: tensors on the meta device and fake ones have none."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.dtype.itemsize > 1
