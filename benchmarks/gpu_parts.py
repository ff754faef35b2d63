"""The parts of :mod:`benchmarks.gpu`: each yields one row (plain data) for each network that it has measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import activation_bytes, time_side_by_side
from benchmarks.networks import OWN_MODES, PLAIN_MODES, Network, NotThereError, modes_of, variant_of
from revbifpn import compile_edges, set_reversible

Row = dict[str, Any]

#: How numbers are computed: float32 as it is, float32 with TF32 products, and autocast.
PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: fp16's gradients are small: the loss is scaled by this, and gradients back where they are compared.
LOSS_SCALE = 1024.0
GRAPH_MODES = ("plain", "reversible", "budget 0.25", "stored", "exact")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        own, others: names of RevBiFPNs and of timm's networks, with batch and image side.
        modes: of RevBiFPN and the yardstick.
        parity: batch and image side of the comparison with the CPU, which takes the first of ``own``.
        repeats: timed turns of each network.
        steps: training steps in a turn, without waiting for the device between them.
        compiler: options for ``torch.compile``.
    """

    own: tuple[tuple[str, int, int], ...]
    others: tuple[tuple[str, int, int], ...]
    modes: tuple[str, ...]
    parity: tuple[int, int]
    repeats: int
    steps: int
    compiler: dict[str, Any]


FULL = Scale(
    own=(("revbifpn_s0", 64, 224), ("revbifpn_s3", 32, 288), ("revbifpn_s6", 8, 352)),
    others=(
        ("efficientnet_b0", 64, 224),
        ("efficientnet_b3", 32, 300),
        ("efficientnet_b7", 8, 600),
        ("hrnet_w18", 64, 224),
        ("resnet50", 64, 224),
        ("mobilenetv3_large_100", 64, 224),
    ),
    modes=(*PLAIN_MODES, *OWN_MODES),
    parity=(4, 224),
    repeats=5,
    steps=4,
    compiler={},
)
TOY = Scale(
    own=(("revbifpn_s0", 2, 32),),
    others=(("mobilenetv3_small_050", 2, 32),),
    modes=("plain", "reversible", "budget 0.25", "exact"),
    parity=(2, 64),
    repeats=1,
    steps=1,
    compiler={"backend": "eager"},
)


@contextmanager
def computing_in(precision: str, device: str) -> Iterator[AbstractContextManager[Any]]:
    """Set what float32 products are computed in; yields the autocast context for the forward pass."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    dtype = PRECISIONS[precision]
    try:
        yield nullcontext() if dtype is None else torch.autocast(device, dtype)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def trainer(model: nn.Module, images: Tensor, labels: Tensor, precision: str, device: str) -> Callable[[], None]:
    """A whole training step that never waits for the device: forward, cross entropy, backward, SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

    def step() -> None:
        with computing_in(precision, device) as autocast:
            with autocast:
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # here, so that networks that wait for their turn hold weights alone

    return step


def parity(scale: Scale, device: str) -> Iterator[Row]:
    """Gradients in every mode and precision: against the yardstick's on the CPU, and against stored mode's, same settings."""
    (name, _, _), (batch, image_size) = scale.own[0], scale.parity
    network = Network(name, "plain", batch, image_size)
    images, labels = network.images(), network.labels()
    reference = _gradients(network.build(drop_rate=0.0), images, labels, "float32", "cpu")
    for precision in PRECISIONS:
        for mode in scale.modes:
            row: Row = {"model": name, "mode": mode, "precision": precision, "batch": batch, "image_size": image_size}
            try:
                model = Network(name, mode, batch, image_size).build(drop_rate=0.0).to(device)
            except NotThereError as missing:
                yield row | {"error": str(missing)}
                continue
            stored = set_reversible(copy.deepcopy(model), False)
            ours, theirs = (_gradients(m, images, labels, precision, device) for m in (model, stored))
            yield row | {
                "against_cpu": _relative_error(ours, reference),
                "against_stored": _relative_error(ours, theirs),
                "identical_to_stored": torch.equal(ours, theirs),
            }


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, precision: str, device: str) -> Tensor:
    """All parameters' gradients as one vector, on the CPU."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with computing_in(precision, device) as autocast:
            with autocast:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            (loss * LOSS_SCALE).backward()
    finally:
        torch.backends.cudnn.deterministic = deterministic
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu() / LOSS_SCALE


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def memory(scale: Scale, device: str) -> Iterator[Row]:
    """Activations of a sample: what the allocator says, and what is predicted without a card; float32."""
    for network in _networks(scale):
        row: Row = _row(network)
        try:
            with computing_in("float32", device):
                measured = activation_bytes(*network.on(device), device) / network.batch
            predicted = activation_bytes(*network.on("meta"), device, "predict") / network.batch
        except (NotThereError, torch.OutOfMemoryError) as error:
            yield row | {"error": _one_line(error)}
        else:
            yield row | {"measured": measured, "predicted": predicted}
        _empty_cache()


def time(scale: Scale, device: str) -> Iterator[Row]:
    """Seconds of a training step, networks in turns: all modes of one size, then timm's networks; TF32 and bf16 autocast."""
    networks = _networks(scale)
    for group in [[n for n in networks if n.name == name] for name in dict.fromkeys(n.name for n in networks)]:
        for precision in ("tf32", "bf16"):
            yield from _timed(group, scale, device, precision, "eager", lambda model, step: step)


def graph(scale: Scale, device: str) -> Iterator[Row]:
    """Seconds of a training step that is captured whole in a CUDA graph, beside the same step run eagerly; TF32."""
    for network in _networks(scale):
        if variant_of(network.name) and network.mode in GRAPH_MODES:
            yield from _timed([network], scale, device, "tf32", "eager", lambda model, step: step)
            yield from _timed([network], scale, device, "tf32", "graph", lambda model, step: captured(step, device))


def compiled(scale: Scale, device: str) -> Iterator[Row]:
    """Seconds of a training step with compiled edges, and of the first one, which compiles them; TF32."""
    for network in _networks(scale):
        if variant_of(network.name) and network.mode == "plain":
            yield from _timed([network], scale, device, "tf32", "eager", lambda model, step: step)
        elif variant_of(network.name) and network.mode in ("reversible", "stored"):
            yield from _timed(
                [network], scale, device, "tf32", "compiled edges", lambda model, step: _compiled(model, step, scale)
            )


def _compiled(model: nn.Module, step: Callable[[], None], scale: Scale) -> Callable[[], None]:
    compile_edges(model, **scale.compiler)
    return step


def captured(step: Callable[[], None], device: str) -> Callable[[], None]:
    """Capture a training step in a CUDA graph; returns what replays it.

    Raises:
        NotThereError: without a CUDA device.
        RuntimeError: torch's, if something in the step waits for the device.
    """
    if device != "cuda":
        raise NotThereError("a CUDA graph needs a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries and the optimizer's state are set up outside of the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        step()
    return recorded.replay


def _timed(
    networks: list[Network],
    scale: Scale,
    device: str,
    precision: str,
    how: str,
    prepare: Callable[[nn.Module, Callable[[], None]], Callable[[], None]],
) -> Iterator[Row]:
    """Rows of networks that take turns; a network that fails has its error in place of times."""
    runs: dict[Network, Callable[[], None]] = {}
    rows = {network: _row(network) | {"precision": precision, "how": how} for network in networks}
    for network, row in rows.items():
        try:
            model, images = network.on(device)
            step = prepare(model, trainer(model, images, network.labels().to(device), precision, device))
            begin = perf_counter()
            step()  # kernels are chosen, and edges compiled, before anything is timed
            _synchronize()
        except (NotThereError, RuntimeError) as error:  # RuntimeError: torch's, out of memory and failed captures too
            yield row | {"error": _one_line(error)}
        else:
            row["first_step"] = perf_counter() - begin
            runs[network] = _several(step, scale.steps)
    for network, seconds in time_side_by_side(runs, scale.repeats).items():
        yield rows[network] | {"seconds": [value / scale.steps for value in seconds]}
    _empty_cache()


def _several(step: Callable[[], None], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def _networks(scale: Scale) -> list[Network]:
    """All networks in all modes; timm's, and one more yardstick, channels_last."""
    networks = []
    for name, batch, image_size in (*scale.own, *scale.others):
        own = variant_of(name) is not None
        modes = scale.modes if own else modes_of(name)
        networks += [Network(name, mode, batch, image_size, channels_last=not own) for mode in modes]
        if own and "plain" in modes:
            networks.append(Network(name, "plain", batch, image_size, channels_last=True))
    return networks


def _row(network: Network) -> Row:
    return {
        "network": str(network),
        "model": network.name,
        "mode": network.mode,
        "batch": network.batch,
        "image_size": network.image_size,
    }


def _one_line(error: Exception) -> str:
    first, _, _ = str(error).partition("\n")
    return first if isinstance(error, NotThereError) else f"{type(error).__name__}: {first}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


#: By name, in the order in which they run: what matters most first.
PARTS: dict[str, Callable[[Scale, str], Iterator[Row]]] = {
    "parity": parity,
    "memory": memory,
    "time": time,
    "graph": graph,
    "compiled": compiled,
}
