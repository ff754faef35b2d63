"""Sparse-IFT of whole networks: made from the dense network, with its operations (Sparse-IFT, arXiv 2303.11525)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from revbifpn.models.blocks import MBConv
from revbifpn.models.classifier import RevBiFPN
from revbifpn.sparsity.distribution import check_sparsity, count_zeros
from revbifpn.sparsity.flops import Flops, count_flops
from revbifpn.sparsity.ift_layers import check_kind, solved_sparsity, transform_layer, width_factor
from revbifpn.sparsity.selection import select_weights
from revbifpn.sparsity.widening import widen


@dataclass(frozen=True)
class SparseIFT:
    """A transformed network, and how sparse it has to be.

    Attributes:
        model: the network, freshly initialised where it was transformed, without masks.
        sparsity: the fraction of zeros with which it has the operations of the dense network: what :class:`.SparseTraining`
            gets, with ``dense``.
        dense: names of weights that stay dense beside those that always do.
        sparse: names of the weights that become sparse.
        dense_flops: operations of the dense network's forward pass, of one image or vector.
        sparse_flops: those of this one with ``sparsity``, in whole numbers of zeros.
    """

    model: nn.Module
    sparsity: float
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    dense_flops: float
    sparse_flops: float


def sparse_ift(
    model: nn.Module, kind: str, sparsity: float, input_size: Sequence[int] | None = None, dense: Sequence[str] = ()
) -> SparseIFT:
    r"""Transform a network by Sparse-IFT: more capacity, the same operations.

    ``sparsity`` sets the capacity (:mod:`.ift_layers` has the formulas). First convolution and classifier, depthwise
    convolutions and what else stays dense cost what they cost; so the density of the sparse weights, one for all, solves

    .. code-block:: text

        operations(dense network) = operations(what stays dense) + density * operations(the sparse weights, if they were dense)

    - ``"wide"`` widens everything but the image and the classes. RevBiFPN is made anew of a wider :class:`.Variant`, whose
      channels are multiples of 16; networks of convolutions, linear layers and batch norms, such as timm's ResNets, have
      each width multiplied and rounded down.
    - ``"parallel"``, ``"factorized"``, ``"doped"`` transform the main convolutions of timm's ResNet blocks, and in RevBiFPN
      the 1x1 convolutions of its MBConvs; they alone become sparse. In a parallel layer each branch has the norm and the
      activation that follow the layer in its block. (The published code has both this form and one that adds a ReLU where
      the block has none; the latter would let a reversible edge only add.)
    - A ``Conv2d`` or ``Linear`` by itself is transformed as a layer. ``"wide"`` gives it wider inputs and outputs.

    Args:
        model: the dense network, which is left as it is.
        kind: ``"wide"``, ``"parallel"``, ``"factorized"`` or ``"doped"``.
        sparsity: 0 <= sparsity < 1; 0 gives a copy of the dense network, with its weights.
        input_size: (C, H, W) of an image, by default that of timm's ``pretrained_cfg``. RevBiFPN's own is its variant's.
        dense: patterns of further weights that stay dense in a wide network.

    Raises:
        ValueError: for another kind or a sparsity out of its range; for a network that cannot be transformed so, or with
            whose dense parts the operations cannot be reached.
    """
    check_kind(kind)
    check_sparsity(sparsity)
    if isinstance(model, nn.Conv2d | nn.Linear):
        return _single(model, kind, sparsity)
    size = _input_size(model, input_size)
    before = count_flops(model, size)
    if sparsity == 0:
        selected = tuple(select_weights(model, dense))
        return SparseIFT(deepcopy(model), 0.0, tuple(dense), selected, before.total, before.total)
    if kind == "wide":
        wider = _wide_revbifpn(model, sparsity) if isinstance(model, RevBiFPN) else widen(model, width_factor(sparsity))
        selected = tuple(select_weights(wider, dense))
        return _solve(wider, _count(wider, size), selected, tuple(dense), before)
    changed, sparse = _transform_blocks(model, kind, sparsity)
    names = tuple(name for name in select_weights(changed) if name not in set(sparse))
    return _solve(changed, _count(changed, size), tuple(sparse), names, before)


def _single(layer: nn.Conv2d | nn.Linear, kind: str, sparsity: float) -> SparseIFT:
    flops = 2.0 * layer.weight.numel()
    if sparsity == 0:
        return SparseIFT(deepcopy(layer), 0.0, (), ("weight",), flops, flops)
    changed, names = transform_layer(layer, kind, sparsity)
    solved = solved_sparsity(layer, kind, sparsity)
    weights = {name: w for name, w in changed.named_parameters() if w.ndim > 1}
    kept = sum(w.numel() - (count_zeros(w.numel(), solved) if name in names else 0) for name, w in weights.items())
    return SparseIFT(changed, solved, tuple(n for n in weights if n not in names), tuple(names), flops, 2.0 * kept)


def _solve(model: nn.Module, flops: Flops, sparse: tuple[str, ...], dense: tuple[str, ...], before: Flops) -> SparseIFT:
    solved = 1 - flops.density_for(before.total, sparse)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    densities = {n: 1 - count_zeros(parameters[n].numel(), solved) / parameters[n].numel() for n in sparse}
    return SparseIFT(model, solved, dense, sparse, before.total, flops.sparse(densities))


def _count(model: nn.Module, size: Sequence[int]) -> Flops:
    try:
        return count_flops(model, size)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be transformed so: its layers do not go together any more ({error}). Sparse-IFT "
            "knows timm's ResNets, RevBiFPN, and networks of convolutions, linear layers and batch norms"
        ) from error


def _input_size(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, ...]:
    if input_size is not None:
        return (1, *input_size)
    if isinstance(model, RevBiFPN):
        return (1, model.in_chans, model.variant.image_size, model.variant.image_size)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if not cfg.get("input_size"):
        raise ValueError(f"{type(model).__name__} does not say the size of its images: give input_size=(C, H, W)")
    return (1, *cfg["input_size"])


def _wide_revbifpn(model: RevBiFPN, sparsity: float) -> RevBiFPN:
    factor = Fraction(width_factor(sparsity)).limit_denominator(1000)
    drop_paths = [m.drop_prob for m in model.modules() if isinstance(m, DropPath) and m.drop_prob]
    variant = replace(
        model.variant,
        name=f"{model.variant.name}-wide",
        width=model.variant.width * factor,
        drop_path_rate=max(drop_paths, default=0.0),
    )
    like = next(model.parameters())
    wide = RevBiFPN(
        variant,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        drop_rate=model.head.drop_rate,
        global_pool=model.global_pool,
        reversible=model.reversible,
        exact=model.body.exact,
        exact_bits=model.body.bits,
        memory_format=model.memory_format,
        device=like.device,
        dtype=like.dtype,
    ).train(model.training)
    for name in ("pretrained_cfg", "default_cfg"):  # timm's description: classifier, mean and std
        if hasattr(model, name):
            setattr(wide, name, deepcopy(getattr(model, name)))
    return wide


@dataclass(frozen=True)
class _Site:
    """A layer of a block, its norm, and the activation that follows, by the names of the block's attributes."""

    layer: str
    norm: str
    act: str | None


_BLOCKS: dict[type[nn.Module], tuple[_Site, ...]] = {
    BasicBlock: (_Site("conv1", "bn1", "act1"), _Site("conv2", "bn2", None)),
    Bottleneck: (_Site("conv1", "bn1", "act1"), _Site("conv2", "bn2", "act2"), _Site("conv3", "bn3", None)),
}


def _sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Site]]:
    """Each layer to transform: the name of its owner, the owner, and what belongs to the layer."""
    for prefix, module in model.named_modules():
        for site in _BLOCKS.get(type(module), ()):
            yield prefix, module, site
        if isinstance(module, MBConv):
            for part in ("expand", "project"):
                if (owner := getattr(module, part, None)) is not None:
                    yield (
                        f"{prefix}.{part}".lstrip("."),
                        owner,
                        _Site("conv", "norm", "act" if hasattr(owner, "act") else None),
                    )


def _transform_blocks(model: nn.Module, kind: str, sparsity: float) -> tuple[nn.Module, list[str]]:
    changed = deepcopy(model)
    sites = list(_sites(changed))
    if not sites:
        raise ValueError(
            f"{kind} Sparse-IFT knows the blocks of timm's ResNets and RevBiFPN's MBConvs; {type(model).__name__} has none: "
            "take 'wide', or transform single layers: sparse_ift(layer, ...)"
        )
    sparse: list[str] = []
    for prefix, owner, site in sites:
        sparse += [f"{prefix}.{site.layer}.{name}".lstrip(".") for name in _transform_site(owner, site, kind, sparsity)]
    return changed, sparse


def _transform_site(owner: nn.Module, site: _Site, kind: str, sparsity: float) -> list[str]:
    norm: nn.Module = getattr(owner, site.norm)
    act: nn.Module | None = getattr(owner, site.act) if site.act else None

    def tail() -> list[nn.Module]:
        copied = deepcopy(norm)
        if isinstance(copied, nn.modules.batchnorm._BatchNorm):
            copied.reset_parameters()
        return [copied] if act is None else [copied, _not_in_place(act)]

    def middle(width: int) -> list[nn.Module]:
        like = next(owner.parameters())
        eps, momentum = getattr(norm, "eps", 1e-5), getattr(norm, "momentum", 0.1)
        inner_act: Callable[[], nn.Module] = nn.Hardswish if site.layer == "conv" else nn.ReLU
        return [nn.BatchNorm2d(width, eps, momentum, device=like.device, dtype=like.dtype), inner_act()]

    changed, names = transform_layer(getattr(owner, site.layer), kind, sparsity, tail, middle)
    setattr(owner, site.layer, changed.train(owner.training))
    if kind == "parallel":
        setattr(owner, site.norm, nn.Identity())
        if site.act:
            setattr(owner, site.act, nn.Identity())
    return names


def _not_in_place(act: nn.Module) -> nn.Module:
    copied: Any = deepcopy(act)
    if getattr(copied, "inplace", False):
        copied.inplace = False
    return copied  # type: ignore[no-any-return]
