"""Following every tensor of a training step: when it is made, by which operator of which module, and when it is freed.

A :class:`StorageTracker` sees each operator that PyTorch dispatches, on real tensors and on fake ones alike, and watches the
storages of what the operator returns. (PyTorch's own ``torch.distributed._tools.MemTracker`` follows storages in the same
way, but keeps sums by module and kind only: no operator, no timeline, no tensor that could be named at the peak.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from revbifpn.reversible.fakes import LiveStorages
from revbifpn.reversible.plan import looks_at_no_tensor

#: Runs one operator: (operator, args, kwargs) -> its result.
Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
#: Bytes that an operator takes besides its outputs, only while it runs: (operator, args, outputs) -> bytes.
Workspace = Callable[[Any, tuple[Any, ...], Any], int]


@dataclass(slots=True, eq=False)
class Allocation:
    """One storage of the step.

    Attributes:
        nbytes: its size in bytes.
        shape, dtype: of the tensor that it was made for.
        operator: what made it, for example ``"convolution"``.
        module: dotted path of the module at work, ``""`` outside of the model.
        phase: ``"before"``, ``"forward"``, ``"backward"`` or ``"optimizer"``.
        differentiable: made while autograd recorded, in backward that is a re-run forward.
        birth: index of the operator that made it.
        death: index of the operator before which it was freed; None if it outlived the step.
        category: see :data:`.CATEGORIES`; filled in at the step's end.
    """

    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    operator: str
    module: str
    phase: str
    differentiable: bool
    birth: int
    death: int | None = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator run; its index in :attr:`StorageTracker.operations` is the time of the step."""

    operator: str
    module: str
    phase: str
    workspace: int


class StorageTracker(TorchDispatchMode):
    """Records a training step while it is active.

    Args:
        model: gives the modules their names.
        execute: how to run an operator; by default, as it is.
        workspace: what operators take for themselves; by default, nothing.
        granularity: bytes to which the allocator rounds sizes up.

    Attributes:
        execute: see above; may be wrapped before the step.
        phase: set by whoever runs the step.
        operations: all operators in order.
        allocations: all storages in order of their birth.
    """

    def __init__(
        self, model: nn.Module, execute: Execute | None = None, workspace: Workspace | None = None, granularity: int = 1
    ) -> None:
        super().__init__()
        self.phase = "before"
        self.operations: list[Operation] = []
        self.allocations: list[Allocation] = []
        self.execute = execute or (lambda func, args, kwargs: func(*args, **kwargs))
        self._workspace = workspace
        self._granularity = granularity
        self._names = {module: name for name, module in model.named_modules()}
        self._modules: list[str] = []
        self._module_of_node: dict[int, str] = {}
        self._live: LiveStorages[Allocation] = LiveStorages(self._freed)

    def __enter__(self) -> StorageTracker:
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def register(self, tensor: Tensor, category: str, module: str = "") -> None:
        """Count a tensor that is there before the step."""
        allocation = self._watch(tensor, "", module)
        if allocation is not None:
            allocation.category = category

    def label(self, tensor: Tensor | None, category: str, module: str | None = None, always: bool = False) -> None:
        """Say what a live tensor is, now that it is known; ``always`` counts it from the step's beginning to its end."""
        allocation = self._live.record_of(tensor) if tensor is not None else None
        if allocation is None or allocation.category:
            return
        allocation.category = category
        if module is not None:
            allocation.module = module
        if always:
            allocation.birth, allocation.phase = -1, "before"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # fake tensors ask for it at every turn; it does nothing
            return self.execute(func, args, kwargs or {})
        name, module = func._overloadpacket.__name__, self._current_module()
        self.operations.append(Operation(name, module, self.phase, 0))
        index = len(self.operations) - 1
        result = self.execute(func, args, kwargs or {})
        if self._workspace is not None and (extra := self._workspace(func, args, result)):
            self.operations[index] = Operation(name, module, self.phase, extra)
        for tensor in _tensors(result):
            self._watch(tensor, name, module)
        return result

    def _watch(self, tensor: Tensor, operator: str, module: str) -> Allocation | None:
        nbytes = tensor.untyped_storage().nbytes()
        if nbytes == 0 or self._live.record_of(tensor) is not None:
            return None
        allocation = Allocation(
            -(-nbytes // self._granularity) * self._granularity,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            operator,
            module,
            self.phase,
            torch.is_grad_enabled(),
            len(self.operations) - 1,
        )
        self.allocations.append(allocation)
        self._live.add(tensor, allocation)
        return allocation

    def _freed(self, allocation: Allocation) -> None:
        allocation.death = len(self.operations)

    @looks_at_no_tensor
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._modules.append(self._names.get(module, self._modules[-1] if self._modules else ""))

    @looks_at_no_tensor
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._modules.pop()

    def _current_module(self) -> str:
        """In forward and in a re-run forward, the innermost module at work; in backward, that of the forward operator."""
        if self._modules:
            module = self._modules[-1]
            # An operator's autograd node is made, and numbered, just before the operator runs.
            self._module_of_node.setdefault(torch.autograd._get_sequence_nr() - 1, module)
            return module
        node = torch._C._current_autograd_node()
        return "" if node is None else self._module_of_node.get(node._sequence_nr(), "")

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name the phase of what happens inside."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from _tensors(item)
