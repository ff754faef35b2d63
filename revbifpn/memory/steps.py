"""Training steps of subjects: their memory, their parameters, and their multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from revbifpn.memory.fake import FakeExecution, UnsupportedOperatorError, fake_weights
from revbifpn.memory.profile import call_model, profile_training
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.subject import Size, Subject, SubjectError
from revbifpn.reversible.kernels import standing_for


@dataclass(frozen=True)
class Settings:
    """How steps are run; see :func:`.profile_training`.

    Attributes:
        optimizer: one of timm's names, None for none, or ``"auto"`` for the subject's own.
        device, method, autocast, snapshot: as in :func:`.profile_training`.
        channels_last: whether weights and images are in ``channels_last``.
    """

    optimizer: str | None = "auto"
    device: str = "cpu"
    method: str = "predict"
    autocast: torch.dtype | None = None
    channels_last: bool = False
    snapshot: Path | None = None


def profile_subject(subject: Subject, mode: str, batch: int, image: Size, settings: Settings) -> MemoryReport:
    """Profile one training step of a subject.

    Args:
        mode: one of the subject's modes.
        batch: samples in the step.
        image: their height and width in pixels.

    Raises:
        SubjectError: if the step cannot be run, with the model's own reason.
        UnsupportedOperatorError: if it cannot be predicted.
    """
    with standing_for(settings.device):
        model = subject.model(mode, image, batch)
    inputs = subject.inputs(batch, image)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = _channels_last(inputs)
    with _explained(subject, batch, image), subject.stand_ins(model):
        return profile_training(
            model,
            inputs,
            loss=subject.loss,
            optimizer=subject.optimizer if settings.optimizer == "auto" else settings.optimizer,
            device=settings.device,
            method=settings.method,
            autocast=settings.autocast,
            snapshot=settings.snapshot,
            name=subject.name,
            mode=mode,
        )


def count_parameters(subject: Subject, image: Size) -> int:
    """Count the numbers in the model's parameters."""
    return sum(p.numel() for p in subject.model(subject.modes[0], image).parameters())


def count_macs(subject: Subject, image: Size) -> float:
    """Count the multiply-accumulates of the convolutions and matrix products in one image's forward pass.

    Raises:
        SubjectError: if a forward pass cannot be run, with the model's own reason.
        UnsupportedOperatorError: if one of its operators needs values.
    """
    model = subject.model("stored", image)  # every subject has this mode
    execution = FakeExecution()
    counter = FlopCounterMode(display=False)
    batch = 2  # batch norm in training mode wants more than one value
    with _explained(subject, batch, image), subject.stand_ins(model), fake_weights(model, execution):
        with _Executing(execution), counter:
            call_model(model, execution.fake_all(subject.inputs(batch, image)))
    return counter.get_total_flops() / 2 / batch


@contextmanager
def _explained(subject: Subject, batch: int, image: Size) -> Iterator[None]:
    """Errors inside say of which subject they are, and of which step."""
    try:
        yield
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(f"{subject.name}: {error}. Measure it instead (--measure)") from error
    except (ValueError, AssertionError, RuntimeError, TypeError, IndexError) as error:
        height, width = image
        raise SubjectError(
            f"{subject.name} cannot run a training step with batch {batch} at {height}x{width}: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Executing(TorchDispatchMode):
    """Runs every operator by a :class:`FakeExecution`."""

    def __init__(self, execution: FakeExecution) -> None:
        super().__init__()
        self.execution = execution

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return self.execution(func, args, kwargs or {})


def _channels_last(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        if inputs.ndim == 5:  # clips
            return _channels_last(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        return inputs.to(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
    if isinstance(inputs, dict):
        return {key: _channels_last(value) for key, value in inputs.items()}
    return inputs
