"""RevBiFPN's body and neck: an image in, a feature pyramid out (RevBiFPN, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from revbifpn.models.arguments import check_count, check_rate
from revbifpn.models.blocks import MBConv, MixChannels, init_weights
from revbifpn.models.body import Body
from revbifpn.models.budget import plan_budget
from revbifpn.models.checkpoints import Fitted, convert_checkpoint, fit, is_published_layout
from revbifpn.models.variants import SIZE_DIVISOR, STREAMS, STRIDES, Variant, get_variant
from revbifpn.reversible import (
    ReadOut,
    RevSilo,
    SpaceToDepth,
    recompute,
    set_reversible,
)
from revbifpn.reversible.budget import Budget, BudgetError, read_budget
from revbifpn.reversible.exact import DEFAULT_BITS
from revbifpn.reversible.memory_format import MemoryFormat, check_memory_format, in_format
from revbifpn.reversible.sequential import Exact
from revbifpn.reversible.streams import memory_format_of


class RevBiFPNPyramid(nn.Module):
    """The fully reversible body and the neck.

    ``stem`` brings an image with more channels than ``variant.stem_channels`` to those (:class:`.MixChannels`); with fewer,
    as in the published models, it does nothing and has no weights. ``body`` is reversible (:class:`.Body`). ``neck`` is one
    MBConv for each stream; it is not reversible and is recomputed in backward.

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        in_chans: image channels.
        drop_path_rate: stochastic depth rate of the last stage, rising linearly from the first; None for the variant's.
        reversible: False keeps all activations, as an ordinary network ("stored mode"); same weights, same gradients.
        exact: rebuild activations bit for bit (see :mod:`revbifpn.reversible.exact`); "auto" does in half precision.
        exact_bits: fractional bits of the exact mode's grid.
        activation_budget: see :meth:`set_activation_budget`; other than 0, it decides in place of ``reversible``.
        memory_format: what it computes in: "channels_last", "contiguous", "keep" for that of the images, or "auto" for
            channels_last on a CPU, which is faster there, and for that of the images elsewhere. What is returned is laid out
            as the images are. Weights need not be converted.

    Attributes:
        kept_levels: the levels that it returns; all four, unless :meth:`keep_levels` dropped some.

    Raises:
        ValueError: for an unknown variant or memory format, no image channels, or a rate outside of 0 <= rate < 1.
    """

    def __init__(
        self,
        variant: str | Variant,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        reversible: bool = True,
        exact: Exact = "auto",
        exact_bits: int = DEFAULT_BITS,
        activation_budget: float | str = 0,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        super().__init__()
        self.variant = get_variant(variant)
        self.in_chans = check_count("in_chans", in_chans, 1)
        self.reversible = reversible
        self.kept_levels = tuple(range(len(STRIDES)))
        rate = check_rate("drop_path_rate", self.variant.drop_path_rate if drop_path_rate is None else drop_path_rate)
        slots = self.variant.stem_channels
        self.stem = MixChannels(in_chans, slots) if in_chans > slots else nn.Identity()
        self.body = Body(self.variant, min(in_chans, slots), rate, reversible, exact, exact_bits, memory_format)
        self.neck = nn.ModuleList(
            MBConv(c, out, kernel=5, expand=spec.neck_expand, se_ratio=spec.neck_se_ratio)
            for c, out, spec in zip(self.variant.channels, self.variant.neck_channels, STREAMS, strict=True)
        )
        self._readouts: dict[tuple[int, ...], ReadOut] = {}
        self.apply(init_weights)
        self._unplanned: float | int = 0.0  # a budget whose plan waits for the first images
        if activation_budget:
            self.set_activation_budget(activation_budget)

    @property
    def memory_format(self) -> MemoryFormat:
        """What it computes in; may be set at any time."""
        return cast(SpaceToDepth, self.body[0]).memory_format

    @memory_format.setter
    def memory_format(self, memory_format: MemoryFormat) -> None:
        cast(SpaceToDepth, self.body[0]).memory_format = check_memory_format(memory_format)

    def stage_layers(self, stage: int) -> list[nn.Module]:
        """The body's layers of one stage, ``0 <= stage < variant.num_stages``."""
        return [self.body[1 + 2 * stage], self.body[2 + 2 * stage]]

    def forward_body(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the four streams, stream i of shape (N, variant.channels[i], H / stride, W / stride).

        Raises:
            ValueError: if the image has another number of channels, sides that are no multiples of 32, or integers.
        """
        self._check_image(image)
        streams = self.body(self.stem(image))
        return tuple(streams[i] for i in range(len(STRIDES)))

    def forward_levels(self, image: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the chosen ``levels``, level i of (N, neck_channels[i], H / stride, W / stride)."""
        return self._handed_back(image, self._levels(image, levels))

    def _levels(self, image: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        """The chosen levels, in the memory format that they were computed in."""
        if isinstance(image, Proxy):
            streams = self.forward_body(image)
            return tuple(self.neck[level](streams[level]) for level in levels)
        self._check_image(image)
        if self._unplanned and self.training and torch.is_grad_enabled():
            self._take_budget(self._unplanned, image)
        outputs: tuple[Tensor, ...] = self.body(self.stem(image), readout=self.readout(tuple(levels)))
        return outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the kept levels, finest first, level i of (N, neck_channels[i], H / stride, W / stride)."""
        return self.forward_levels(image, self.kept_levels)

    def _handed_back(self, image: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The levels in the memory format of the image; in a torch.fx graph the body has seen to that."""
        if isinstance(image, Proxy):
            return tuple(levels)
        return tuple(in_format(level, memory_format_of(image)) for level in levels)

    def readout(self, levels: tuple[int, ...]) -> ReadOut:
        """The neck of some levels, as the end of the body's pass."""
        modules = [(level, self.neck[level]) for level in levels]
        readout = self._readouts.get(levels)
        if readout is None or readout.modules != modules:
            readout = self._readouts[levels] = ReadOut(modules, len(STRIDES), "the neck")
        return readout

    def set_activation_budget(
        self, budget: float | str, image_size: int | tuple[int, int] | None = None, batch: int | None = None
    ) -> Budget | None:
        """Choose how much activation memory training may take: edges are stored, not rebuilt, while it lasts.

        Activation memory is what is alive at most in forward and backward of this model, less the parameters' gradients.
        Gradients are the same at every budget: up to rounding, or bit for bit in exact mode.

        Args:
            budget: 0 for reversible mode, 1 for stored mode; between them a fraction of what stored mode takes; or bytes, as
                a number or as a text such as ``"2 GiB"``.
            image_size: side of the images, or height and width, that the choice is made for.
            batch: how many of them are in a step. Without both, the first training step makes the choice for its own images.
                Other sizes later make their own choice within the same bytes, or fraction.

        Returns:
            The choice, which prints as a table; None where there is nothing to choose, or not yet.

        Raises:
            BudgetError: for what is no budget, or less than the minimum, which the message says; or for a size of images
                without a batch.
        """
        asked = read_budget(budget)
        if (image_size is None) != (batch is None):
            raise BudgetError("an activation budget is planned for a size of images and a batch: give both, or neither")
        self._unplanned, self.body.budget = 0.0, None
        set_reversible(self, asked != 1.0)
        if asked in (0.0, 1.0):
            return None
        if image_size is None or batch is None:
            self._unplanned = asked
            return None
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        images = torch.empty(batch, self.in_chans, height, width, device="meta")
        if any(memory_format_of(param) is torch.channels_last for param in self.parameters()):
            images = images.to(memory_format=torch.channels_last)
        return self._take_budget(asked, images)

    def _take_budget(self, asked: float | int, images: Tensor) -> Budget:
        """Plan for such images."""
        self._unplanned = 0.0
        plan = plan_budget(self, asked, images)
        if plan.limit >= plan.stored:
            set_reversible(self, False)
        self.body.budget = plan
        return plan

    def keep_levels(self, levels: Iterable[int]) -> None:
        """Drop what only serves other levels: their neck, and the edges of the last silo that lead to nothing kept.

        The kept levels' values stay the same, and no parameter is left without a gradient. There is no way back.

        Args:
            levels: indices of levels that are still kept, 0 for stride 4 to 3 for stride 32.

        Raises:
            ValueError: if there are none, or one is not kept.
        """
        kept = sorted(set(levels))
        if not kept or not set(kept) <= set(self.kept_levels):
            raise ValueError(f"cannot keep the levels {kept}: choose at least one of {self.kept_levels}")
        for level in set(self.kept_levels) - set(kept):
            self.neck[level] = nn.Identity()
        silo = cast(RevSilo, self.body[-1])
        # z_j = y_j + sum of up edges: y_j is read by z_j and, through its up edges, by all finer z_k.
        _drop_edges(silo.up, lambda target: target in kept)
        _drop_edges(silo.down, lambda target: target >= kept[0])
        self.kept_levels = tuple(kept)
        self.forget_edges()

    def forget_edges(self) -> None:
        """Look the neck's modules up anew; to be called where they were replaced."""
        self._readouts.clear()

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a module that is not reversible, keeping as little of it as the mode asks for."""
        if isinstance(inputs[0], Proxy):  # torch.fx has no values yet, so nothing to keep
            output: Tensor = module(*inputs)
            return output
        return recompute(module, *inputs, store=not self.reversible, exact=self.body.is_exact(inputs[0]))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, *, allow_non_finite: bool = False
    ) -> Any:
        """torch's, for other key layouts and stems too; if ``strict``, nothing is loaded unless everything fits.

        timm's ``checkpoint_path`` ends here, so this is a part of the path in :mod:`revbifpn.models.checkpoints`.

        Args:
            allow_non_finite: take weights that are NaN or infinite too, where ``strict`` would refuse them.

        Raises:
            CheckpointError: if ``strict``, see :func:`.fit`.
        """
        if strict and not isinstance(state_dict, Fitted):
            state_dict = fit(state_dict, self, "the state dict", allow_non_finite=allow_non_finite)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the published key layout too, wherever a state dict is loaded from."""
        own = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
        if is_published_layout(own):
            converted = convert_checkpoint({name: state_dict.pop(key) for name, key in own.items()})
            state_dict.update({prefix + name: tensor for name, tensor in converted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_image(self, image: Tensor) -> None:
        if isinstance(image, Proxy):
            return
        name = f"RevBiFPN-{self.variant.name}"
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(
                f"{name}: expected an image batch of shape (N, {self.in_chans}, H, W), got {tuple(image.shape)}; "
                "the number of channels is set by in_chans"
            )
        if not image.is_floating_point():
            raise ValueError(
                f"{name}: image must hold floating-point numbers, normalized as in training, got {image.dtype}: for pixels of "
                "0..255 that is (image / 255 - mean) / std"
            )
        # While exporting, sides may be symbols; the exporter then keeps the constraint itself.
        h, w = image.shape[-2:]
        if h % SIZE_DIVISOR or w % SIZE_DIVISOR or h == 0 or w == 0:
            padded = tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (h, w))
            raise ValueError(
                f"{name}: image sides must be multiples of {SIZE_DIVISOR}, got {h}x{w}: resize or pad it, for example to "
                f"{padded[0]}x{padded[1]} (MMDetection: pad_size_divisor={SIZE_DIVISOR} in the data preprocessor)"
            )


def _drop_edges(nested: nn.ModuleDict, is_needed: Callable[[int], bool]) -> None:
    """Drop edges by their target stream."""
    for source, edges in list(nested.items()):
        edges = cast(nn.ModuleDict, edges)
        for target in list(edges):
            if not is_needed(int(target)):
                del edges[target]
        if not edges:
            del nested[source]
