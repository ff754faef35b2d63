"""Profile one training step: measured on a device that is there, or predicted for one that is not.

>>> import timm, torch, revbifpn
>>> from revbifpn.memory import profile_training
>>> model = timm.create_model("revbifpn_s0")
>>> images = torch.empty(64, 3, 224, 224, device="meta")  # a shape is enough for a prediction
>>> report = profile_training(model, images, optimizer="sgd")
>>> report.method, report.batch
('predicted', 64)
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from revbifpn.memory.analysis import analyse
from revbifpn.memory.fake import FakeExecution, fake_weights
from revbifpn.memory.measure import mark, measure_cpu, measure_cuda
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.tracker import StorageTracker
from revbifpn.memory.workspace import cpu_workspace
from revbifpn.reversible.kernels import standing_for
from revbifpn.reversible.streams import memory_format_of
from revbifpn.reversible.units import format_bytes

#: What a model is called with: one tensor, positional arguments, or keyword arguments.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
#: From what the model returns to one number.
Loss = Callable[[Any], Tensor]
#: The name of one of timm's optimizers, or a function from parameters to an optimizer; None for none.
OptimizerChoice = str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None

#: PyTorch's CUDA allocator hands out multiples of this many bytes.
CUDA_GRANULARITY = 512


def profile_training(
    model: nn.Module,
    inputs: Inputs,
    *,
    loss: Loss | None = None,
    optimizer: OptimizerChoice = None,
    device: str = "cpu",
    method: str = "predict",
    autocast: torch.dtype | None = None,
    snapshot: Path | None = None,
    name: str = "",
    mode: str = "",
) -> MemoryReport:
    """Find out how much memory a training step takes, and where it goes.

    The step is: gradients set to None, forward, loss, backward, and the optimizer's step, with the optimizer's state there
    from the beginning as in all steps but the first. The model is left as it was.

    Args:
        model: in training mode, or whatever mode the step should be in.
        inputs: what it is called with. For a prediction, tensors on the ``meta`` device give just their shapes.
        loss: by default, the mean of all floating-point outputs.
        optimizer: one of timm's names such as ``"sgd"`` (with momentum) or ``"adamw"``, or a function.
        device: ``"cpu"`` or ``"cuda"``.
        method: ``"predict"`` runs the step on fake tensors: in seconds, for sizes far beyond this machine's memory.
            ``"measure"`` runs it on copies for real and reads the allocator's figures.
        autocast: dtype of mixed precision; None for none.
        snapshot: file for the CUDA allocator's record of a measured step (see :func:`.measure_cuda`).
        name, mode: for the report.

    Returns:
        The report; ``report.peak`` is in bytes.

    Raises:
        UnsupportedOperatorError: if a prediction meets an operator that needs values.
        ValueError: for an unknown optimizer, device or method, or a measurement on a device that is not there.
    """
    if method not in ("predict", "measure"):
        raise ValueError(f"method must be 'predict' or 'measure', got {method!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if method == "measure" and device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device to measure on: use method='predict'")
    if snapshot is not None and (method, device) != ("measure", "cuda"):
        raise ValueError("a snapshot is the CUDA allocator's: it needs method='measure' and device='cuda'")
    make_optimizer = _optimizer_maker(optimizer)
    step = _Step(loss or mean_of_outputs, device, autocast)
    if method == "predict":
        tracker, measurement, notes = _predict(model, inputs, step, make_optimizer, device)
    else:
        tracker, measurement, notes = _measure(model, inputs, step, make_optimizer, device, snapshot)
    tensors = list(_tensors(inputs))
    images = [tuple(t.shape[-2:]) for t in tensors if t.ndim in (4, 5)]  # (N, C, H, W), or clips (N, T, C, H, W)
    return analyse(
        tracker,
        model,
        measurement,
        name=name or type(model).__name__,
        method="predicted" if method == "predict" else "measured",
        device=device,
        mode=mode,
        batch=tensors[0].shape[0] if tensors and tensors[0].ndim else 1,
        image=(images[0][0], images[0][1]) if images else None,
        optimizer=optimizer if isinstance(optimizer, str) else "none" if optimizer is None else "custom",
        precision="float32" if autocast is None else str(autocast).removeprefix("torch."),
        notes=notes,
    )


class _Step:
    """The training step, with its phases told to the tracker."""

    def __init__(self, loss: Loss, device: str, autocast: torch.dtype | None) -> None:
        self.loss = loss
        self.device = device
        self.autocast = autocast

    def __call__(
        self, model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer | None, tracker: StorageTracker | None
    ) -> None:
        def during(phase: str) -> Any:
            return tracker.during(phase) if tracker else nullcontext()

        with during("forward"):
            amp = torch.autocast(self.device, self.autocast) if self.autocast else nullcontext()
            with amp:
                loss = self.loss(call_model(model, inputs))
        with during("backward"):
            loss.backward()
        del loss
        if tracker is not None:
            for path, param in model.named_parameters():
                tracker.label(param.grad, "gradients", path.rpartition(".")[0])
        if optimizer is not None:
            with during("optimizer"):
                optimizer.step()


def _predict(model: nn.Module, inputs: Inputs, step: _Step, make_optimizer: Any, device: str) -> Any:
    execution = FakeExecution()
    grads = [p.grad for p in model.parameters()]
    with torch.random.fork_rng(devices=[]), fake_weights(model, execution), standing_for(device):
        fake_inputs = execution.fake_all(inputs)
        on_cpu = device == "cpu"
        tracker = StorageTracker(model, execution, cpu_workspace if on_cpu else None, 1 if on_cpu else CUDA_GRANULARITY)
        _register(tracker, model, fake_inputs)
        optimizer = make_optimizer(model)
        with tracker:
            step(model, fake_inputs, optimizer, tracker)
            _label_state(tracker, optimizer)
        notes = [] if on_cpu else ["predicted without a GPU: cuDNN's workspaces and the CUDA context are not included"]
        del optimizer
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad
    return tracker, None, notes


def _measure(model: nn.Module, inputs: Inputs, step: _Step, make_optimizer: Any, device: str, snapshot: Path | None) -> Any:
    model = copy.deepcopy(model).to(device)
    inputs = _to(inputs, device)
    optimizer = make_optimizer(model)
    on_cpu = device == "cpu"
    if optimizer is not None or not on_cpu:  # its state, and what libraries keep on a GPU, are there in all later steps
        step(model, inputs, optimizer, None)
        model.zero_grad(set_to_none=True)
    gc.collect()  # what an earlier measurement left, freed during this one, would count against it
    tracker = StorageTracker(model, granularity=1 if on_cpu else CUDA_GRANULARITY)
    if on_cpu:
        tracker.execute = mark(tracker.execute, lambda: len(tracker.operations) - 1)
    _register(tracker, model, inputs)
    _register_state(tracker, optimizer)

    def tracked_step() -> None:
        with tracker:
            step(model, inputs, optimizer, tracker)

    if on_cpu:
        return tracker, measure_cpu(tracked_step, lambda: len(tracker.operations)), []
    measurement = measure_cuda(tracked_step, snapshot)
    notes = ["the CUDA context (some hundred MB a process) is not included"]
    if measurement.reserved is not None:
        notes.append(f"the caching allocator held {format_bytes(measurement.reserved)} at most, free blocks included")
    return tracker, measurement, notes


def _register(tracker: StorageTracker, model: nn.Module, inputs: Inputs) -> None:
    for path, param in model.named_parameters():
        tracker.register(param, "parameters", path.rpartition(".")[0])
    for path, buffer in model.named_buffers():
        tracker.register(buffer, "buffers", path.rpartition(".")[0])
    for tensor in _tensors(inputs):
        tracker.register(tensor, "inputs")


def _register_state(tracker: StorageTracker, optimizer: torch.optim.Optimizer | None) -> None:
    for state in optimizer.state.values() if optimizer else ():
        for tensor in _tensors(state):
            tracker.register(tensor, "optimizer state")


def _label_state(tracker: StorageTracker, optimizer: torch.optim.Optimizer | None) -> None:
    """The first step makes the state; in all others it is there from the beginning."""
    for state in optimizer.state.values() if optimizer else ():
        for tensor in _tensors(state):
            tracker.label(tensor, "optimizer state", always=True)


def _optimizer_maker(choice: OptimizerChoice) -> Callable[[nn.Module], torch.optim.Optimizer | None]:
    if choice is None:
        return lambda model: None
    if callable(choice):
        return lambda model: choice([p for p in model.parameters() if p.requires_grad])

    def make(model: nn.Module) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return create_optimizer_v2(model, opt=choice, lr=1e-3, momentum=0.9, filter_bias_and_bn=False)

    try:
        make(nn.Linear(1, 1, device="meta"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"unknown optimizer {choice!r}: use one of timm's, such as 'sgd', 'adamw' or 'lamb'") from error
    return make


def mean_of_outputs(outputs: Any) -> Tensor:
    """The mean of all floating-point outputs that have a gradient.

    Raises:
        ValueError: if there are none.
    """
    values = [t for t in _tensors(outputs) if t.is_floating_point() and t.requires_grad]
    if not values:
        raise ValueError("the model returned nothing that has a gradient: pass a loss function, or unfreeze some weights")
    return torch.stack([value.float().mean() for value in values]).sum()


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """``model(tensor)``, ``model(*sequence)`` or ``model(**mapping)``."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _made_up(like: Tensor, device: str) -> Tensor:
    """Noise, as images are after normalisation: with zeros, norms without variance would let gradients overflow."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return noise.to(device, like.dtype).contiguous(memory_format=memory_format_of(like))


def _to(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return _made_up(value, device) if value.is_meta else value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, device) for item in value)
    return value.to(device) if hasattr(value, "to") else value  # MMEngine's data elements
