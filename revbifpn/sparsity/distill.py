"""Training a pruned network on: its mask stays, and the dense network may teach it, level by level of the pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.sparsity.masks import MaskError, check_masks, check_zeros
from revbifpn.sparsity.repair import modes_kept
from revbifpn.sparsity.selection import select_weights
from revbifpn.sparsity.training import SparseTraining


class FeatureTaps:
    """A context in which the outputs of some modules are kept, by their names.

    Args:
        model: the network.
        names: of modules; None for those of ``model.feature_info``, which timm's networks have: of RevBiFPN the levels of its
            pyramid.

    Raises:
        ValueError: for a network without ``feature_info``, or a name that it has not.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        self.names = feature_names(model) if names is None else list(names)
        modules = dict(model.named_modules())
        if unknown := [name for name in self.names if name not in modules]:
            raise ValueError(f"{type(model).__name__} has no module {unknown[0]!r}")
        self.modules = [modules[name] for name in self.names]
        self.outputs: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureTaps:
        for name, module in zip(self.names, self.modules, strict=True):

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                self.outputs[name] = output

            self._handles.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> list[Tensor]:
        """Return the outputs of the last forward, in the order of the names, and forget them."""
        taken = [self.outputs[name] for name in self.names]
        self.outputs.clear()
        return taken


def feature_names(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are a network's features, finest first.

    Raises:
        ValueError: if the network does not say.
    """
    info = getattr(model, "feature_info", None)
    entries = getattr(info, "info", info) or ()
    names = [entry["module"] for entry in entries if entry.get("module")]
    if not names:
        raise ValueError(f"{type(model).__name__} has no feature_info: name the modules whose outputs are to be matched")
    return names


def square_head(student: Sequence[Tensor], teacher: Sequence[Tensor], eps: float = 1e-6) -> Tensor:
    """The SquareHead loss: mean squared difference over the teacher's mean square, summed over levels.

    Args:
        student, teacher: features of equal shapes, level by level.

    Raises:
        ValueError: if the levels do not match.
    """
    shapes = [[tuple(level.shape) for level in levels] for levels in (student, teacher)]
    if not student or shapes[0] != shapes[1]:
        raise ValueError(f"the features of student and teacher must have equal shapes, got {shapes[0]} and {shapes[1]}")
    losses = [
        F.mse_loss(ours.float(), theirs.detach().float()) / (theirs.detach().float().square().mean() + eps)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).sum()


def train_pruned(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    teacher: nn.Module | None = None,
    features: Sequence[str] | None = None,
    distillation: float = 1.0,
    clip: float | None = None,
) -> list[float]:
    """Train a pruned network, with its zeros held, by cross entropy and, with a teacher, by :func:`square_head` too.

    :class:`.SparseTraining` holds the zeros, so the masked gradients are clipped, not the dense ones.

    Args:
        model: with the zeros of ``masks``. It is in training mode meanwhile, and afterwards as it was.
        masks: of :func:`.prune`.
        batches: (images, labels), as many as there are steps.
        optimizer: of the model's parameters, freshly made.
        scheduler: is stepped after each step.
        teacher: the dense network, in eval mode meanwhile.
        features: modules whose outputs are matched; None for ``model.feature_info``.
        distillation: weight of the SquareHead loss; cross entropy has weight 1.
        clip: the most that the norm of the masked gradients may be.

    Returns:
        The loss of each step.

    Raises:
        ValueError: for masks of another model or that disagree with its zeros, for an optimizer of another model, or features
            that student and teacher do not have alike.
        FloatingPointError: if the loss is NaN or infinite.
    """
    taps = FeatureTaps(model, features) if teacher is not None else None
    guide = FeatureTaps(teacher, features) if teacher is not None else None
    losses = []
    with _held(model, masks, optimizer) as sparse, modes_kept(model):
        model.train()
        for step, (images, labels) in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            if teacher is None or taps is None or guide is None:
                loss = F.cross_entropy(model(images), labels)
            else:
                with taps:
                    logits = model(images)
                with guide, modes_kept(teacher), torch.no_grad():
                    teacher.eval()(images)
                loss = F.cross_entropy(logits, labels) + distillation * square_head(taps.take(), guide.take())
            loss.backward()
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss.detach()):
                raise FloatingPointError(f"the loss of step {step + 1} is {losses[-1]}: take a lower learning rate")
            sparse.step(max_norm=clip)
            if scheduler is not None:
                scheduler.step()
    return losses


@contextmanager
def _held(model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Iterator[SparseTraining]:
    """Static masks for a while; refused before anything changes if the weights are not zero where the masks drop."""
    parameters = dict(model.named_parameters())
    if unknown := [name for name in masks if name not in parameters]:
        raise MaskError(f"masks of another model: {type(model).__name__} has no {unknown[0]}")
    weights = {name: parameters[name] for name in masks}
    check_masks(weights, masks)
    check_zeros(weights, masks)
    dense = [name for name in select_weights(model) if name not in masks]
    sparse = SparseTraining(model, optimizer, method="static", masks=masks, dense=dense)
    try:
        yield sparse
    finally:
        sparse.remove()
