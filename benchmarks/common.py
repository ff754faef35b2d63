"""What every measurement here shares: the training step, how its time and memory are taken, what is printed beside them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.memory import MemoryReport, profile_training
from revbifpn.memory.environment import describe, environment

__all__ = [
    "activation_bytes",
    "describe",
    "environment",
    "gradients",
    "median_and_spread",
    "peak_alone",
    "table",
    "time_side_by_side",
    "trainer",
    "update_json",
]

Key = TypeVar("Key", bound=Hashable)


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward, cross entropy and backward."""
    F.cross_entropy(model(images), labels).backward()


def trainer(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A whole training step as a function: forward, cross entropy, backward, SGD with momentum.

    Its learning rate is so small that the weights, and with them what is measured, stay as they are.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        gradients(model, images, labels)
        optimizer.step()

    return step


def time_side_by_side(runs: Mapping[Key, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[Key, list[float]]:
    """Seconds of each run, taken in turns (A B C A B C ...), so that a machine that drifts drifts for all alike."""
    seconds: dict[Key, list[float]] = {name: [] for name in runs}
    for repeat in range(warmup + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def profile(model: nn.Module, images: Tensor, device: str, method: str) -> MemoryReport:
    """Forward, cross entropy and backward under the profiler; its ``peak`` is the step's."""
    labels = torch.arange(len(images), device="cpu" if images.is_meta else images.device) % 10
    return profile_training(model, images, loss=lambda x: F.cross_entropy(x, labels), device=device, method=method)


def activation_bytes(model: nn.Module, images: Tensor, device: str = "cpu", method: str = "measure") -> int:
    """The highest sum of live allocations in forward and backward, less the parameters' gradients.

    What was there before the step (weights, images) does not count.

    Args:
        device, method: see :func:`revbifpn.memory.profile_training`; images on the meta device are enough for a prediction.
    """
    return peak_above_static(profile(model, images, device, method)) - sum(p.nbytes for p in model.parameters())


def peak_above_static(report: MemoryReport) -> int:
    """A step's peak less what was there before the step."""
    return report.peak - sum(report.categories[name] for name in ("parameters", "buffers", "inputs"))


def peak_alone(model: nn.Module, images: Tensor, device: str = "cpu", method: str = "measure") -> int:
    """The peak of a step that lets every parameter's gradient go as soon as it is there.

    Where gradients are as large as activations (deep networks, small batches), the usual figure depends on how many of them
    happen to exist at the peak; this one does not.
    """
    return peak_above_static(profile(_ReleasesGradients(model), images, device, method))


class _ReleasesGradients(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        for param in self.model.parameters():  # here, since the profiler puts other ones in the model's place
            param.register_post_accumulate_grad_hook(_release)
        output: Tensor = self.model(images)
        return output


def _release(param: Tensor) -> None:
    param.grad = None


def median_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """``median (minimum - maximum)``."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def update_json(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``changes`` into a JSON file and keep its other entries; returns all of them."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    content.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return content
