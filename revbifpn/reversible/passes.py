"""A pass: all that one forward pass through a chain of layers leaves for its backward pass.

Nothing of a pass hangs on a module, so two passes, and two threads, do not meet. The tensors that a pass needs are saved by
the chain's autograd functions (:mod:`.autograd`); values of a layer's outputs, which nobody saved, are handed from the
function of one layer to that of the layer before it, on the pass.

The same way go gradients between two layers, where nobody can see them: then they belong to the pass and are overwritten
rather than added to. Autograd carries zeros without memory in their place, which keep the order. Where a hook looks at a
layer's streams, the gradients go through autograd as everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from revbifpn.reversible.autograd import LinkFunction
from revbifpn.reversible.forms import Setting
from revbifpn.reversible.layers import Held, LayerRun, ReversibleLayer
from revbifpn.reversible.plan import hooked
from revbifpn.reversible.streams import Streams

if TYPE_CHECKING:
    from revbifpn.reversible.additive import Choice
    from revbifpn.reversible.exact import ExactMonitor
    from revbifpn.reversible.readout import ReadOut


@dataclass
class Link:
    """One layer of a pass.

    Attributes:
        index: position among the layers of the pass.
        run: what the layer needs to run again.
        num_streams: how many streams it takes.
        saves: what it keeps of its streams: ``"outputs"``, ``"inputs"``, ``"both"``, or nothing where the next one
            rebuilds its outputs.
        private_before: whether nobody outside of the pass can see its input streams.
        owned: for each input stream, whether the pass has made its memory and nobody outside can see it.
    """

    owner: Pass
    index: int
    run: LayerRun
    num_streams: int
    saves: str
    private_before: bool
    owned: list[bool]


class Pass:
    """One forward pass through a chain and its backward pass.

    Args:
        setting: what its edges share.
        monitor: checks that the reversal is exact, where that was asked for.
        first: index of the pass's first layer in its chain, for messages.
        count: how many links there will be.
        stored: keep each layer's inputs and what its edges keep, instead of rebuilding them.
        streams: what goes into the first layer.
        keep: edges that are stored all the same.
    """

    def __init__(
        self,
        setting: Setting,
        monitor: ExactMonitor | None,
        first: int,
        count: int,
        stored: bool,
        streams: Streams,
        keep: Set[nn.Module] = frozenset(),
    ) -> None:
        self.setting, self.monitor, self.first, self.count = setting, monitor, first, count
        self.stored = stored
        self.store: Choice = stored or keep
        self.done = 0
        self._private = False  # whether the streams that come next were seen by nobody
        self._owned = [False] * len(streams)  # and which of them lie in memory that was made in this pass
        self._streams = streams  # what the last layer returned
        self._values: Held | None = None
        self._grads: Held | None = None
        self._owner = -1

    # Forward

    def run(self, layer: ReversibleLayer, streams: Streams) -> Streams:
        """Run ``layer`` as the next link of the chain."""
        streams = self._as_returned(layer, streams)
        if self.stored and not layer.is_lean():
            self.done += 1
            self._streams = layer.transform(streams, self.setting)
            return self._streams
        last = self.done == self.count - 1
        private_before = self._private and not self.stored and not layer._forward_pre_hooks
        self._private = not last and not self.stored and not hooked([layer])
        # Stored links keep their inputs for derivatives of derivatives; these are the outputs of the links before.
        saves = "both" if self.stored else "outputs" if last else ""
        run = layer.begin(self.setting, self.store)
        run.name = self._name_of(layer)
        return self._apply(run, streams, saves, private_before)

    def read_out(self, readout: ReadOut, streams: Streams) -> Streams:
        """End the chain: its streams go through a module each."""
        if self.stored and not readout.is_lean():
            return readout.transform(streams, self.setting)
        # Exact in all modes alike: chunks decide the last bits of what kernels return.
        frugal = self.setting.exact or self.setting.room < math.inf
        run = readout.begin(replace(self.setting, frugal=frugal), self.store)
        return self._apply(run, streams, "inputs", self._private)

    def end(self) -> None:
        """The forward pass is over, or was broken off: the graph and the pass, which hold each other, let go."""
        self._streams = ()

    def _apply(self, run: LayerRun, streams: Streams, saves: str, private_before: bool) -> Streams:
        owned = self._owned if private_before else [False] * len(streams)
        link = Link(self, self.done, run, len(streams), saves, private_before, owned)
        self.done += 1
        self._streams = LinkFunction.apply(link, *streams, *run.params)
        self._owned = run.owned
        return self._streams

    def _as_returned(self, layer: ReversibleLayer, streams: Streams) -> Streams:
        """The streams as the last layer returned them; a stream that was changed on its way could not be rebuilt."""
        if not self._streams or len(streams) != len(self._streams):
            return streams
        streams = uncast(streams, self._streams)
        for index, (got, returned) in enumerate(zip(streams, self._streams, strict=True)):
            if self.done and got is not returned and got.data_ptr() != returned.data_ptr():
                raise RuntimeError(
                    f"stream {index} is another tensor when it comes to reversible {self._name_of(layer)} than the layer "
                    "before it returned, so it could not be rebuilt: no hook may change streams between the layers of a "
                    "ReversibleSequential; set reversible=False where one has to"
                )
        return streams

    def _name_of(self, layer: ReversibleLayer) -> str:
        """The layer that comes next, with the number that it has in the user's chain."""
        return f"layer {self.first + self.done} ({type(layer).__name__})"

    # Backward

    def put(self, owner: int, values: Held, grads: Held | None) -> None:
        """Leave the values of link ``owner``'s outputs, and their gradients where autograd carries none."""
        self._owner, self._values, self._grads = owner, values, grads

    def take_values(self, owner: int) -> Held:
        """Take the values of link ``owner``'s outputs; the pass forgets them."""
        values, self._values = self._values, None
        if values is None or self._owner != owner:
            raise RuntimeError(
                f"the backward pass reached reversible layer {self.first + owner} but not the layer after it, so nothing "
                "rebuilt its outputs: a gradient can enter a ReversibleSequential only by its outputs (or together with "
                "them). "
                "Split it in two where you take an intermediate result, or set reversible=False"
            )
        return values

    def take_grads(self) -> Held | None:
        """Take the gradients that the link after left; None if autograd carried them."""
        grads, self._grads = self._grads, None
        return grads


def uncast(streams: Streams, returned: Streams) -> Streams:
    """The streams in the precision in which they were ``returned``: FSDP's mixed precision casts what goes into a layer."""
    if len(streams) != len(returned) or all(s.dtype == r.dtype for s, r in zip(streams, returned, strict=True)):
        return streams
    return tuple(_Uncast.apply(stream, value.detach()) for stream, value in zip(streams, returned, strict=True))


class _Uncast(torch.autograd.Function):
    """A stream's value as it was before something cast it, with the gradient of what it was cast to."""

    @staticmethod
    def forward(ctx: Any, cast: Tensor, value: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        return grads[0], None
