r"""Temporal shift inside reversible couplings: frames of a clip exchange channels, and everything stays invertible.

TSM (Lin et al., "TSM: Temporal Shift Module", section 3) shifts a part of the channels along time on the input of a residual
branch. In a coupling that is the input of an edge,

.. code-block:: text

    forward   y1 = x1 + f(shift(x0))        inverse   x1 = y1 - f(shift(x0))

so the carried streams are never shifted, and the zeros that a shift fills in lose nothing: the inverse computes the same
``shift(x0)`` from the same ``x0``. No parameter is added and no key of the state dict changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from revbifpn.models.blocks import MBConv, lean_units
from revbifpn.reversible import RevBlock, lean_chain, register_lean_form
from revbifpn.reversible.additive import AdditiveLayer
from revbifpn.reversible.forms import EdgeCost, Form, Replay, Run, Setting


def shift_frames(x: Tensor, frames: int, fold: int, back: bool = False) -> Tensor:
    """Shift channels of (N * frames, C, H, W) along time, within each clip; the memory format stays.

    Of each frame the first ``fold`` channels become those of the next frame, the second ``fold`` those of the frame before,
    zeros where there is none; the others stay.

    Args:
        back: apply the transposed map, which carries gradients back.

    Raises:
        ValueError: if the batch is no whole number of clips.
    """
    if x.shape[0] % frames:
        raise ValueError(
            f"temporal shift: a clip has {frames} frames, and a batch of {x.shape[0]} is no whole number of clips"
        )
    shifted = x.clone()
    before, after = x.unflatten(0, (-1, frames)), shifted.unflatten(0, (-1, frames))
    for channels, ahead in ((slice(fold), not back), (slice(fold, 2 * fold), back)):
        if ahead:
            after[:, :-1, channels] = before[:, 1:, channels]
            after[:, -1, channels] = 0
        else:
            after[:, 1:, channels] = before[:, :-1, channels]
            after[:, 0, channels] = 0
    return shifted


class ShiftedMBConv(nn.Sequential):
    """An MBConv of the shifted input; it takes the parts of ``block`` over, with their names.

    It is no :class:`.MBConv`, so nothing takes it for one and leaves the shift out.

    Args:
        block: the MBConv.
        frames: frames of a clip.
        fold: channels that are shifted each way.
    """

    def __init__(self, block: MBConv, frames: int, fold: int) -> None:
        super().__init__(OrderedDict(block.named_children()))
        self.frames = frames
        self.fold = fold
        self.train(block.training)

    def extra_repr(self) -> str:
        return f"frames={self.frames}, fold={self.fold}"

    def shift(self, x: Tensor, back: bool = False) -> Tensor:
        """See :func:`shift_frames`."""
        return shift_frames(x, self.frames, self.fold, back)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(self.shift(x))
        return output


def shift_couplings(model: nn.Module, frames: int, div: int = 8) -> int:
    """Let every RevBlock of ``model`` shift the input of its edges, in place.

    Args:
        frames: frames of a clip; the model then takes batches of whole clips, a clip's frames one after the other.
        div: one part in ``div`` of an edge's channels is shifted each way.

    Returns:
        How many edges shift.

    Raises:
        ValueError: if there is no RevBlock of MBConvs in the model, or they have less than ``div`` channels.
    """
    count = 0
    for block in [module for module in model.modules() if isinstance(module, RevBlock)]:
        for name, edge in list(block.named_children()):
            if type(edge) is not MBConv:
                continue
            channels = next(part for part in edge.modules() if isinstance(part, nn.Conv2d)).in_channels
            if channels < div:
                raise ValueError(f"temporal shift: one part in {div} of {channels} channels is none; choose a smaller div")
            setattr(block, name, ShiftedMBConv(edge, frames, channels // div))
            count += 1
    if not count:
        raise ValueError(
            f"temporal shift stands inside RevBiFPN's couplings, and {type(model).__name__} has none: choose another temporal "
            "head, or a revbifpn backbone"
        )
    for layer in model.modules():
        if isinstance(layer, AdditiveLayer):
            layer.forget_edges()
    return count


class ShiftedForm(Form):
    """The lean form of a chain whose input is shifted first."""

    def __init__(self, edge: ShiftedMBConv, chain: Form) -> None:
        super().__init__(edge)
        self.shift = edge.shift
        self.chain = chain
        self.slots = chain.slots

    def begin(self, setting: Setting, store: bool) -> Run:
        return _ShiftedRun(self, self.chain.begin(setting, store))

    def cost(self, shape: Sequence[int], itemsize: int) -> EdgeCost | None:
        return self.chain.cost(shape, itemsize)


class _ShiftedRun(Run):
    """A pass of the chain; the shift needs nothing kept."""

    __slots__ = ("chain", "form")

    def __init__(self, form: ShiftedForm, chain: Run) -> None:
        self.form, self.chain = form, chain

    def record(self, source: Tensor) -> Tensor:
        return self.chain.record(self.form.shift(source))

    def kept(self) -> list[Tensor]:
        return self.chain.kept()

    def replay(
        self, source: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor | None, wants_source: bool
    ) -> Replay:
        return _ShiftedReplay(self.form, self.chain.replay(self.form.shift(source), params, kept, grad, wants_source))

    def differentiable(self, source: Tensor, params: Sequence[Tensor]) -> Tensor:
        return self.chain.differentiable(self.form.shift(source), params)


class _ShiftedReplay(Replay):
    """The chain's second run; its gradient is shifted back as a whole, since a shift looks across the chain's chunks."""

    def __init__(self, form: ShiftedForm, chain: Replay) -> None:
        self.form, self.chain = form, chain
        chain.fresh = True  # the gradient of the shifted input has no other owner

    def values(self) -> Iterator[tuple[slice, Tensor]]:
        return self.chain.values()

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        whole = self.chain.whole_source_grad()
        if whole is not None:
            yield slice(None), self.form.shift(whole, back=True)

    def param_grads(self) -> list[Tensor | None]:
        return self.chain.param_grads()


def _lean_shifted(block: ShiftedMBConv) -> Form | None:
    units = lean_units(block)
    chain = lean_chain(block, units, getattr(block, "drop_path", None)) if units else None
    return ShiftedForm(block, chain) if chain else None


register_lean_form(ShiftedMBConv, _lean_shifted)
