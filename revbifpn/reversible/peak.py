"""The activation memory of a training step, predicted in seconds on tensors without values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revbifpn.reversible.autograd import LinkFunction
from revbifpn.reversible.fakes import LiveStorages, fake_twin


class _Meter(TorchDispatchMode):
    """Notes when each storage is made and freed, in the order of these events; ``known`` tensors are there before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.events: list[tuple[int, int | None]] = []  # (bytes more or fewer, what was running: see `_now`)
        self.forward = True
        self._link: int | None = None
        self.live: LiveStorages[int] = LiveStorages(lambda nbytes: self.events.append((-nbytes, None)))
        for tensor in known:
            self.live.add(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._watch(value)
        return result

    def _watch(self, tensor: Tensor) -> None:
        nbytes = tensor.untyped_storage().nbytes()
        if nbytes and self.live.record_of(tensor) is None:
            self.events.append((nbytes, self._now()))
            self.live.add(tensor, nbytes)

    def _now(self) -> int | None:
        """In forward the number of the newest node, in backward that of the last link that began; None before the first."""
        if self.forward:
            return torch.autograd._get_sequence_nr() - 1
        node = torch._C._current_autograd_node()
        if node is not None and node.name() == LINK:
            self._link = node._sequence_nr()
        return self._link

    def peaks(self, links: Sequence[int], known: int) -> Peaks:
        """The largest sums of live bytes, less ``known`` bytes; ``links`` are the numbers of the links' nodes, in order."""
        live = elsewhere = 0
        of_links = [0] * len(links)
        for nbytes, now in self.events:
            live += nbytes
            if now is None or not links:
                elsewhere = max(elsewhere, live)
            else:
                link = max(0, bisect_right(links, now) - 1)
                of_links[link] = max(of_links[link], live)
        return Peaks([peak - known for peak in of_links], elsewhere - known)


class Peaks(NamedTuple):
    """Live bytes at most.

    Attributes:
        links: while each link of a pass ran, forward or backward, in the order of the forward pass; what follows the last
            one in forward counts to it.
        elsewhere: at any other time.
    """

    links: list[int]
    elsewhere: int

    @property
    def highest(self) -> int:
        return max([*self.links, self.elsewhere])


#: What autograd calls the backward function of a link.
LINK = f"{LinkFunction.__name__}Backward"


class FakeStep:
    """Runs a module on fake twins of its weights and of an input, so that shapes, dtypes and devices are all there is.

    Args:
        module: nothing of it changes.
        like: of its one input's shape and strides; its values and its device do not matter.

    Raises:
        TypeError: if a parameter is of a kind that has no fake twin, such as FSDP's.
    """

    def __init__(self, module: nn.Module, like: Tensor) -> None:
        self.module = module
        self.mode = FakeTensorMode()
        first = next(module.parameters())
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            if type(tensor) not in (Tensor, nn.Parameter):
                raise TypeError(
                    f"{name} is a {type(tensor).__name__}, so a training step cannot be predicted: choose an activation "
                    "budget before the model is wrapped"
                )
        self.weights = {
            name: fake_twin(self.mode, tensor.detach()).requires_grad_(tensor.requires_grad)
            for name, tensor in tensors.items()
        }
        with self.mode:
            device = "cpu" if first.is_meta else first.device
            self.image = torch.empty_strided(like.shape, like.stride(), device=device, dtype=first.dtype)

    def run(self, function: Callable[[Tensor], Any]) -> Any:
        """What ``function`` returns of the input, with the fake weights hung into the module."""
        with self.mode:
            return functional_call(_Calls(self.module, function), self._named(), (self.image,))

    def activation_peaks(self, function: Callable[[Tensor], Any]) -> Peaks:
        """Bytes that are alive at most in forward and backward of ``function``, less all of the parameters' gradients."""
        meter = _Meter([self.image, *self.weights.values()])
        with self.mode, meter:
            outputs = functional_call(_Calls(self.module, function), self._named(), (self.image,))
            loss = torch.stack([output.float().mean() for output in tree_leaves(outputs)]).sum()
            del outputs
            links = _links_of(loss)
            meter.forward = False
            loss.backward()
        grads = sum(tensor.grad.nbytes for tensor in self.weights.values() if tensor.grad is not None)
        for tensor in self.weights.values():
            tensor.grad = None
        return meter.peaks(links, grads)

    def _named(self) -> dict[str, Tensor]:
        return {f"module.{name}": tensor for name, tensor in self.weights.items()}


class _Calls(nn.Module):
    """Calls a function that uses a module, so that no hook on the module itself is told."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, image: Tensor) -> Any:
        return self.function(image)


def _links_of(loss: Tensor) -> list[int]:
    """The numbers of all links' nodes in the graph of ``loss``, in the order of the forward pass."""
    todo, seen, found = [loss.grad_fn], set(), []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == LINK:
            found.append(node._sequence_nr())
        todo += [following for following, _ in node.next_functions]
    return sorted(found)
