"""Running a module twice in one training step with the same result: once to get values, once to get gradients.

The first run computes values only. The second, in the backward pass, computes the same values with a graph. What could
differ between the two is kept in an :class:`EdgeRun`, one small object for each edge and forward pass, never on the
module, so several forwards may come before one backward:

=====================  =================================================================================================
parameters             the second run sees those of the first, as detached leaves: hooks on the real parameters fire once
running statistics     moved by the first run only; the second run of a training-mode norm layer has no buffers to move
gathered statistics    SyncBatchNorm gathers across processes in the first run only (see :mod:`.statistics`)
other buffers          if the first run changed one, the second starts from a copy of its old value
random state           kept if the first run drew from it, else not
autocast               same device types, dtypes and enabled flags; the weight cache stays off in both runs (see `_uncached`)
train or eval mode     as in the first run, even if `model.eval()` came between
=====================  =================================================================================================

What breaks the promise: an edge that reads or changes state outside its parameters and buffers (a Python counter, a global).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from revbifpn.reversible.statistics import GatheredStatistics, needs_gathering


class EdgeRun:
    """One forward run of ``edge``, and all that a second run needs to return the same values.

    Args:
        edge: the module to run.

    Attributes:
        needs: for each of its parameters, whether it asks for a gradient.
    """

    __slots__ = (
        "_autocast",
        "_buffer_slots",
        "_changing",
        "_modes",
        "_param_slots",
        "_params",
        "_random_states",
        "_statistics",
        "edge",
        "needs",
    )

    def __init__(self, edge: nn.Module) -> None:
        self.edge = edge
        self._params: list[Tensor] = []
        # A slot is the place in a module where a tensor hangs: (the module's dictionary, name, what belongs there).
        self._param_slots: list[tuple[dict[str, Any], str, int]] = []
        self._buffer_slots: list[tuple[dict[str, Any], str, Tensor | None]] = []
        self._changing: set[int] = set()  # buffer slots of modules in training mode, which may change them
        self._modes: list[tuple[nn.Module, bool]] = []
        self._autocast: list[tuple[str, bool, torch.dtype]] = []
        self._random_states: list[tuple[str, Tensor]] = []
        self._statistics: GatheredStatistics | None = None
        index_of: dict[int, int] = {}
        for module in edge.modules():
            if needs_gathering(module):
                self._statistics = GatheredStatistics()
            self._modes.append((module, module.training))
            for name, param in module._parameters.items():
                if param is not None:
                    if id(param) not in index_of:
                        index_of[id(param)] = len(self._params)
                        self._params.append(param)
                    self._param_slots.append((module._parameters, name, index_of[id(param)]))
            # Without statistics a training-mode norm layer normalises the same way and has nothing to move. SyncBatchNorm
            # insists on its counter, and with half-precision input on its statistics: they get copies like other buffers.
            dropped = module.training and isinstance(module, _NormBase) and not isinstance(module, nn.SyncBatchNorm)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    if module.training and not dropped:
                        self._changing.add(len(self._buffer_slots))
                    self._buffer_slots.append((module._buffers, name, None if dropped else buffer))
        self.needs = [param.requires_grad for param in self._params]

    def take_params(self) -> list[Tensor]:
        """Hand over the parameters of the first run (each once); whoever takes them keeps them for the second."""
        params, self._params = self._params, []
        return params

    def first(self, *inputs: Tensor) -> Tensor:
        """Run the edge for its values: no graph, running statistics move.

        Args:
            *inputs: what the edge takes; they decide which devices' random state and autocast state are kept.

        Returns:
            What the edge returns.
        """
        devices = _devices(inputs)
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {device.split(":")[0] for device in devices}
        ]
        states = [(device, _get_random_state(device)) for device in devices]
        before = [
            (i, buffer._version, buffer.clone()) for i in self._changing if (buffer := self._buffer_slots[i][2]) is not None
        ]
        with torch.no_grad(), _uncached(), self._statistics.kept() if self._statistics else nullcontext():
            output = self.edge(*inputs)
        for i, version, old in before:
            owner, name, buffer = self._buffer_slots[i]
            if buffer is not None and buffer._version != version:
                self._buffer_slots[i] = (owner, name, old)
        self._random_states = [
            (device, state) for device, state in states if not torch.equal(state, _get_random_state(device))
        ]
        return output

    def again(self, params: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Run the edge once more, as in :meth:`first` but with a graph if grad mode is on.

        Args:
            params: stand-ins for what :meth:`take_params` returned, in the same order.
            *inputs: the same values as in :meth:`first`.
        """
        with ExitStack() as stack:
            stack.enter_context(_uncached())
            stack.enter_context(self._installed(params))
            for kind, enabled, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            if self._statistics:
                stack.enter_context(self._statistics.handed_out())
            if self._random_states:
                stack.enter_context(_random_states(self._random_states))
            return self.edge(*inputs)

    @contextmanager
    def _installed(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Hang ``params`` and the buffers of the first run into the edge, and take them out again.

        ``torch.func.functional_call`` does the same by name; it looks every name up, and finds tied parameters anew, each
        time, which costs more than a small edge's forward.
        """
        saved = [(owner, name, owner[name]) for owner, name, _ in self._param_slots if name in owner]
        saved += [(owner, name, owner[name]) for owner, name, _ in self._buffer_slots if name in owner]
        # Compared first: assigning to a module's attribute costs more than a small edge's operators.
        switched = [(module, module.training) for module, training in self._modes if module.training != training]
        try:
            for owner, name, index in self._param_slots:
                owner[name] = params[index]
            for i, (owner, name, buffer) in enumerate(self._buffer_slots):
                owner[name] = buffer.clone() if buffer is not None and i in self._changing else buffer
            for module, training in switched:
                module.training = not training
            yield
            if any(owner.get(name) is not params[index] for owner, name, index in self._param_slots):
                raise RuntimeError(
                    f"something replaced parameters of {type(self.edge).__name__} while it ran again in backward, so they "
                    "would get no gradient. With FSDP, shard reversible layers (fully_shard(layer) for each layer of the "
                    "ReversibleSequential) and the whole model, not edges or recomputed modules"
                )
        finally:
            for owner, name, tensor in saved:
                owner[name] = tensor
            for module, training in switched:
                module.training = training


@contextmanager
def _uncached() -> Iterator[None]:
    """Switch off two caches that would hand a tensor without graph to a run that needs one, or the reverse.

    Autocast caches the low-precision copy of a weight, and ``parametrize.cached()`` a computed weight: filled in the first
    run, where no graph is built, a hit in the second would silently give that weight no gradient.
    """
    autocast_cache, parametrize_cache = torch.is_autocast_cache_enabled(), parametrize._cache_enabled
    torch.set_autocast_cache_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(autocast_cache)
        parametrize._cache_enabled = parametrize_cache


def _devices(tensors: Sequence[Tensor]) -> list[str]:
    """The devices whose state a run on ``tensors`` may depend on: the host, and where the tensors are."""
    return list(dict.fromkeys(["cpu", *(str(t.device) for t in tensors if torch.amp.is_autocast_available(t.device.type))]))


def _get_random_state(device: str) -> Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.get_device_module(device).get_rng_state(device)


@contextmanager
def _random_states(states: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Set the random states of some devices, and set them back at the end."""
    before = [(device, _get_random_state(device)) for device, _ in states]

    def set_all(values: list[tuple[str, Tensor]]) -> None:
        for device, state in values:
            if device == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(device).set_rng_state(state, device)

    set_all(states)
    try:
        yield
    finally:
        set_all(before)
