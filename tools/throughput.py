"""Images a second and memory of training and inference on this machine, for several models side by side.

    python tools/throughput.py revbifpn_s0 revbifpn_s0:stored efficientnet_b0 --batch-size 16 --image-size 224

Models are named as for revbifpn-memory: a timm name or module:callable, and after a further colon the mode to train in;
without one a model trains in its usual mode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revbifpn.memory import profile_training
from revbifpn.memory.sources import subject_and_mode


@dataclass(frozen=True)
class Throughput:
    """What one model does on this machine.

    Attributes:
        model: as it was asked for.
        parameters: numbers in the model's parameters.
        batch: images in a step.
        image: side of the images in pixels.
        train, infer: images a second, median. Loading images is not in it.
        train_memory, infer_memory: peak of a step in bytes, by :func:`revbifpn.memory.profile_training`; training with SGD
            and momentum.
    """

    model: str
    parameters: int
    batch: int
    image: int
    train: float
    infer: float
    train_memory: int
    infer_memory: int


def measure_throughput(
    models: Sequence[str],
    batch_size: int = 32,
    image_size: int | None = None,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    repeats: int = 5,
) -> list[Throughput]:
    """Measure models side by side, in turns, so that a machine that drifts drifts for all alike.

    Args:
        models: as :func:`.subject_and_mode` takes them; only models that are called with a batch of images alone.
        image_size: side in pixels; None for each model's own.
        device: ``"cpu"`` or ``"cuda"``. Memory is measured on a GPU and predicted for a CPU.
        autocast: dtype of mixed precision; None for none.
        repeats: timed steps of each model.

    Raises:
        ValueError: for an unknown model or mode, a model that takes other inputs, or a device that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU is there for device 'cuda'; take 'cpu'")
    runs = [_Run(name, batch_size, image_size, device, autocast) for name in models]
    seconds: dict[tuple[int, str], list[float]] = {}
    for repeat in range(repeats + 1):
        for index, run in enumerate(runs):
            for what, step in (("train", run.train), ("infer", run.infer)):
                elapsed = _seconds(step, device)
                if repeat:  # the first chooses kernels and warms up
                    seconds.setdefault((index, what), []).append(elapsed)
    return [
        Throughput(
            model=run.name,
            parameters=sum(p.numel() for p in run.model.parameters()),
            batch=batch_size,
            image=run.images.shape[-1],
            train=batch_size / statistics.median(seconds[index, "train"]),
            infer=batch_size / statistics.median(seconds[index, "infer"]),
            train_memory=run.train_memory(),
            infer_memory=run.infer_memory(),
        )
        for index, run in enumerate(runs)
    ]


class _Run:
    """A model in a mode, with a random batch."""

    def __init__(self, name: str, batch_size: int, image_size: int | None, device: str, autocast: torch.dtype | None) -> None:
        self.name = name
        self.device = device
        self.autocast = autocast
        subject, mode = subject_and_mode(name)
        size = (image_size, image_size) if image_size else subject.image
        batch = subject.inputs(batch_size, size)
        if not isinstance(batch, Tensor):
            raise ValueError(f"{name} cannot be timed: it is not called with a batch of images alone, as timm's models are")
        self.model = subject.model(mode or subject.modes[0], size, batch_size).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = torch.randn(batch.shape, device=device).contiguous(memory_format=torch.channels_last)
        self.loss = subject.loss
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self.loss(self.model(self.images))
        loss.backward()
        self.optimizer.step()

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            self.model(self.images)

    def train_memory(self) -> int:
        return self._profile(self.model.train(), loss=self.loss, optimizer="sgd")

    def infer_memory(self) -> int:
        # A step whose forward keeps nothing and whose backward does nothing.
        return self._profile(_Inference(self.model.eval()), loss=lambda output: output.new_zeros((), requires_grad=True))

    def _profile(self, model: nn.Module, **options: Any) -> int:
        self.optimizer.zero_grad()
        method = "measure" if self.device == "cuda" else "predict"
        report = profile_training(model, self.images, device=self.device, method=method, autocast=self.autocast, **options)
        return report.peak

    def _autocast(self) -> Any:
        return torch.autocast(self.device, self.autocast) if self.autocast else nullcontext()


class _Inference(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = self.model(images)
        return output


def _seconds(step: Callable[[], None], device: str) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="timm name or module:callable; then :MODE")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="side in pixels (default: each model's own)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each model; the median counts")
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    autocast = None if not args.amp else torch.float16 if args.device == "cuda" else torch.bfloat16
    results = measure_throughput(args.models, args.batch_size, args.image_size, args.device, autocast, args.repeats)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    kind = "measured" if args.device == "cuda" else "predicted"
    print(f"{where}; torch {torch.__version__}; batch {args.batch_size}; memory {kind}, training with SGD and momentum")
    print("| model | parameters, M | image | training, images/s | inference, images/s | training, MB | inference, MB |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        memory = f"{r.train_memory / 1e6:.0f} | {r.infer_memory / 1e6:.0f}"
        print(f"| {r.model} | {r.parameters / 1e6:.2f} | {r.image} | {r.train:.1f} | {r.infer:.1f} | {memory} |")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"throughput: {error}")
