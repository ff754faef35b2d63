"""The plain form: any module, replayed under autograd.

The first run computes values only. The second, in the backward pass, computes the same values with a graph. What could
differ between the two is kept in one small object for each edge and pass, never on the module:

=====================  =================================================================================================
parameters             the second run sees those of the first, as detached leaves: hooks on the real parameters fire once
running statistics     moved by the first run only; the second run of a training-mode norm layer has no buffers to move
gathered statistics    SyncBatchNorm gathers across processes in the first run only (see :mod:`.statistics`)
statistics in use      those of a norm in eval mode are copied: a training pass in between may move them
other buffers          if the first run changed one, the second starts from a copy of its old value; one that was changed
                       in between, as by another pass, is an error
random state           kept if the edge draws from it in the first run
autocast               same device types, dtypes and enabled flags; the weight cache stays off in both runs (see `_uncached`)
train or eval mode     as in the first run, even if `model.eval()` came between
=====================  =================================================================================================

What breaks the promise: an edge that reads or changes state outside its parameters and buffers (a Python counter, a global).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import _disable_current_modes

from revbifpn.reversible.forms import Form, Replay, Run, Setting, own_dtype
from revbifpn.reversible.kernels import cast
from revbifpn.reversible.statistics import GatheredStatistics, needs_gathering
from revbifpn.reversible.streams import same_storage

#: The second run hangs stand-ins into modules; another thread must not run the same modules meanwhile, nor read what hangs
#: in them.
modules_in_use = threading.RLock()


class BufferSlot(NamedTuple):
    """A place where a buffer hangs.

    Attributes:
        owner, name: the module's dictionary and the name in it.
        dropped: whether the replay does without the buffer.
        changing: whether a run may change it.
        copied: whether a later run may change it and nothing would show that, so that each run keeps a copy.
    """

    owner: dict[str, Any]
    name: str
    dropped: bool
    changing: bool
    copied: bool


class PlainForm(Form):
    """See the module's text.

    Args:
        edge: maps tensors to one tensor.
    """

    def __init__(self, edge: nn.Module) -> None:
        super().__init__(edge)
        #: Every place where a parameter hangs, with its index among the parameters.
        self.param_slots: list[tuple[dict[str, Any], str, int]] = []
        self.buffer_slots: list[BufferSlot] = []
        self.modes = [(module, module.training) for module in edge.modules()]
        self.gathers = any(needs_gathering(module) for module in edge.modules())
        index_of: dict[int, int] = {}
        for module in edge.modules():
            for name, param in module._parameters.items():
                if param is not None:
                    if id(param) not in index_of:
                        index_of[id(param)] = len(self.slots)
                        self.slots.append((module._parameters, name))
                    self.param_slots.append((module._parameters, name, index_of[id(param)]))
            # Without statistics a training-mode norm layer normalises the same way and has nothing to move. SyncBatchNorm
            # insists on its counter, and with half-precision input on its statistics: they get copies like other buffers.
            dropped = module.training and isinstance(module, _NormBase) and not isinstance(module, nn.SyncBatchNorm)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    changing = module.training and not dropped
                    # torch's batch norm moves its statistics behind the back of their version counters.
                    copied = not module.training and buffer.is_floating_point() and buffer.ndim <= 1
                    self.buffer_slots.append(BufferSlot(module._buffers, name, dropped, changing, copied))

    def begin(self, setting: Setting, store: bool) -> Run:
        return PlainRun(self, setting)  # stored mode has no runs of plain forms: autograd keeps what they need


class PlainRun(Run):
    """One pass of one edge in the plain form."""

    __slots__ = ("autocast", "buffers", "form", "random_states", "setting", "statistics", "versions")

    def __init__(self, form: PlainForm, setting: Setting) -> None:
        self.form = form
        self.setting = setting
        self.autocast: list[tuple[str, bool, torch.dtype]] = []
        self.random_states: list[tuple[str, Tensor]] = []
        self.statistics = GatheredStatistics() if form.gathers else None
        self.buffers: list[Tensor | None] = []
        self.versions: list[int | None] = []

    def record(self, source: Tensor) -> Tensor:
        return self.record_all([source])

    def record_all(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the edge for its value; running statistics move."""
        devices = _devices(inputs)
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {device.split(":")[0] for device in devices}
        ]
        with modules_in_use:
            states = [(device, _get_random_state(device)) for device in devices]
            self._note_buffers()
            before = [x._version for x in inputs]
            with torch.no_grad(), _uncached(), self.statistics.kept() if self.statistics else nullcontext():
                own = [own_dtype(self.form.edge, x, self.setting) for x in inputs]
                output = _check_tensor(self.form.edge, self.form.edge(*own))
            self._settle_buffers()
            self._check_unchanged(inputs, before)
            self.random_states = [(device, state) for device, state in states if _differs(state, _get_random_state(device))]
        return output

    def _note_buffers(self) -> None:
        self.buffers, self.versions = [], []
        for owner, name, dropped, changing, copied in self.form.buffer_slots:
            buffer = owner[name]
            self.buffers.append(None if dropped else buffer.clone() if changing or copied else buffer)
            self.versions.append(None if dropped else buffer._version)

    def _settle_buffers(self) -> None:
        """Keep a copy of the old value only of buffers that the run changed."""
        for index, slot in enumerate(self.form.buffer_slots):
            if slot.changing and slot.owner[slot.name]._version == self.versions[index]:
                self.buffers[index] = slot.owner[slot.name]

    def replay(
        self, source: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor | None, wants_source: bool
    ) -> Replay:
        return self.replay_all([source], params, grad, [wants_source])

    def replay_all(
        self, inputs: Sequence[Tensor], params: Sequence[Tensor], grad: Tensor | None, wants: Sequence[bool]
    ) -> PlainReplay:
        """As :meth:`replay`, for an edge with any number of inputs."""
        return PlainReplay(self, inputs, params, grad, wants)

    def again(self, params: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Run the edge once more, as in :meth:`record` but with a graph if grad mode is on."""
        for index, (owner, name, *_) in enumerate(self.form.buffer_slots):
            seen: Tensor | None = self.buffers[index]
            if seen is None or owner.get(name) is not seen:
                continue
            assert seen is not None  # narrowed by the comparison with what mypy takes for Any | None
            if not seen.is_floating_point():
                continue  # a counter of batches decides no value
            if seen._version != self.versions[index]:
                raise RuntimeError(
                    f"buffer {name!r} of {type(self.form.edge).__name__} was changed between forward and backward, as by "
                    "another forward pass in training mode, so the edge would return other values now: run backward before "
                    "that pass"
                )
        with modules_in_use, ExitStack() as stack:
            stack.enter_context(_uncached())
            stack.enter_context(self._hung_in(params, self.buffers))
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            if self.statistics:
                stack.enter_context(self.statistics.handed_out())
            if self.random_states:
                stack.enter_context(_random_states(self.random_states))
            before = [x._version for x in inputs]
            own = [own_dtype(self.form.edge, x, self.setting) for x in inputs]
            output = _check_tensor(self.form.edge, self.form.edge(*own))
            self._check_unchanged(inputs, before)
            return output

    def _check_unchanged(self, inputs: Sequence[Tensor], versions: list[int]) -> None:
        if [x._version for x in inputs] != versions:
            raise RuntimeError(
                f"{type(self.form.edge).__name__} changes its input in place, so the input cannot be rebuilt: let it work "
                "on a copy (no inplace=True on what comes in)"
            )

    @contextmanager
    def _hung_in(self, params: Sequence[Tensor], buffers: Sequence[Tensor | None]) -> Iterator[None]:
        """Hang ``params`` and the buffers of the first run into the edge, and take them out again.

        ``torch.func.functional_call`` does the same by name; it looks every name up, and finds tied parameters anew, each
        time, which costs more than a small edge's forward.
        """
        form = self.form
        saved = [(owner, name, owner[name]) for owner, name, _ in form.param_slots if name in owner]
        saved += [(owner, name, owner[name]) for owner, name, *_ in form.buffer_slots if name in owner]
        # Compared first: assigning to a module's attribute costs more than a small edge's operators.
        switched = [(module, module.training) for module, training in form.modes if module.training != training]
        try:
            for owner, name, index in form.param_slots:
                owner[name] = params[index]
            for slot, buffer in zip(form.buffer_slots, buffers, strict=True):
                slot.owner[slot.name] = buffer.clone() if buffer is not None and slot.changing else buffer
            for module, training in switched:
                module.training = not training
            yield
            if any(owner.get(name) is not params[index] for owner, name, index in form.param_slots):
                raise RuntimeError(
                    f"something replaced parameters of {type(form.edge).__name__} while it ran again in backward, so they "
                    "would get no gradient. With FSDP, shard reversible layers (fully_shard(layer) for each layer of the "
                    "ReversibleSequential) and the whole model, not edges or recomputed modules"
                )
        finally:
            for owner, name, tensor in saved:
                owner[name] = tensor
            for module, training in switched:
                module.training = training


class PlainReplay(Replay):
    """A second run under autograd, in one chunk."""

    def __init__(
        self, run: PlainRun, inputs: Sequence[Tensor], params: Sequence[Tensor], grad: Tensor | None, wants: Sequence[bool]
    ) -> None:
        self.run, self.grad, self.wants = run, grad, wants
        differentiate = grad is not None
        self.leaves = [x.detach().requires_grad_(want and differentiate) for x, want in zip(inputs, wants, strict=True)]
        # Detached: what hangs on the real parameters must see one gradient, the returned one.
        self.params = [p.detach().requires_grad_(p.requires_grad and differentiate) for p in params]
        differentiate &= any(t.requires_grad for t in (*self.leaves, *self.params))
        with torch.set_grad_enabled(differentiate):
            self.output = run.again(self.params, self.leaves)

    def values(self) -> Iterator[tuple[slice, Tensor]]:
        yield slice(None), self.output.detach()

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        (source,) = self.input_grads()
        if source is not None:
            yield slice(None), source

    def input_grads(self) -> list[Tensor | None]:
        """Gradients of the inputs; those of the parameters are then there too."""
        wanted = [x if want else None for x, want in zip(self.leaves, self.wants, strict=True)]
        params = [p if p.requires_grad else None for p in self.params]
        tensors = [t for t in (*wanted, *params) if t is not None]
        grads: Iterator[Tensor | None] = iter(())
        if tensors and self.grad is not None and self.output.requires_grad:
            grad = cast(self.grad, self.output.dtype)
            grads = iter(torch.autograd.grad(self.output, tensors, grad, allow_unused=True))
            del self.output
        else:
            grads = iter([None] * len(tensors))
        found = [None if t is None else next(grads) for t in wanted]
        self._param_grads = [None if t is None else _apart(next(grads), self.grad) for t in params]
        return found

    def whole_source_grad(self) -> Tensor | None:
        # What autograd hands on may be the gradient that came in, or lie in one place.
        found = super().whole_source_grad()
        return None if found is None else found.clone()

    def param_grads(self) -> list[Tensor | None]:
        return self._param_grads


def _apart(found: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """A gradient in other memory than ``grad``, into which other edges' gradients may come."""
    return found.clone() if found is not None and grad is not None and same_storage(found, grad) else found


def _check_tensor(edge: nn.Module, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"{type(edge).__name__} returned {type(output).__name__}, but an edge has to return one tensor")
    return output


def _differs(before: Tensor, after: Tensor) -> bool:
    if not torch._C._len_torch_dispatch_stack():
        return not torch.equal(before, after)
    with _disable_current_modes():  # such as fake tensors: random states are real all the same
        return not torch.equal(before, after)


@contextmanager
def _uncached() -> Iterator[None]:
    """Switch off two caches that would hand a tensor without graph to a run that needs one, or the reverse.

    Autocast caches the low-precision copy of a weight, and ``parametrize.cached()`` a computed weight: filled in the first
    run, where no graph is built, a hit in the second would silently give that weight no gradient. (torch 2.14 looks at the
    graph itself; older versions do not all.)
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
