"""What is claimed of GPUs, on a card."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import activation_bytes
from benchmarks.gpu_parts import captured, trainer
from benchmarks.networks import Network
from revbifpn import RevBiFPN, set_reversible
from revbifpn.models import VARIANTS
from tests.reversible.common import Edge

SMALL = replace(VARIANTS["s0"], num_ext_layers=1)
MODES = ("reversible", "stored", "exact", "budget 0.5")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE, BATCH = 96, 4
LOSS_SCALE = 1024.0


def make(mode: str, device: str, **options: Any) -> RevBiFPN:
    torch.manual_seed(0)
    model = RevBiFPN(SMALL, num_classes=10, drop_rate=0.0, exact=True if mode == "exact" else "auto", **options)
    if mode == "stored":
        set_reversible(model, False)
    elif mode.startswith("budget"):
        model.set_activation_budget(float(mode.split()[1]), SIDE, BATCH)
    return model.to(device).train()


def images_and_labels(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).to(device), (torch.arange(BATCH) % 10).to(device)


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def gradients(model: nn.Module, device: str, precision: str = "float32") -> Tensor:
    """Of all parameters, as one vector on the CPU."""
    images, labels = images_and_labels(device)
    with autocast(precision, device):
        loss = F.cross_entropy(model(images), labels)
    found = torch.autograd.grad(loss * LOSS_SCALE, list(model.parameters()))
    return torch.cat([grad.flatten().float() for grad in found]).cpu() / LOSS_SCALE


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def on_cpu() -> Tensor:
    return gradients(make("stored", "cpu"), "cpu")


@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_float32_are_the_cpus(mode: str, on_cpu: Tensor) -> None:
    """Other kernels and other orders of sums, through norms over few values: 1e-3; of the exact mode's grid, 1e-2."""
    assert relative(gradients(make(mode, "cuda"), "cuda"), on_cpu) < (1e-2 if mode == "exact" else 1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_exact_mode_is_stored_mode_bit_for_bit(precision: str) -> None:
    exact = make("exact", "cuda")
    stored = set_reversible(copy.deepcopy(exact), False)
    assert torch.equal(gradients(exact, "cuda", precision), gradients(stored, "cuda", precision))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["reversible", "budget 0.5"])
def test_half_precision_is_exact_by_default(mode: str, precision: str) -> None:
    model = make(mode, "cuda")
    stored = set_reversible(copy.deepcopy(model), False)
    assert torch.equal(gradients(model, "cuda", precision), gradients(stored, "cuda", precision))


@pytest.mark.parametrize("mode", MODES)
def test_grad_scaler_skips_an_overflow_and_goes_on(mode: str) -> None:
    model = make(mode, "cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30, growth_interval=1000)
    images, labels = images_and_labels("cuda")
    before = [param.detach().clone() for param in model.parameters()]
    scales, moved = [], []
    for _ in range(24):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scales.append(scaler.get_scale())
        scaler.update()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
    assert not moved[0], "the first step overflows, so the weights stay"
    assert scales[-1] < scales[0]
    assert moved[-1]
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("mode", ["reversible", "stored", "exact"])
def test_the_allocators_peak_is_what_was_predicted(mode: str) -> None:
    """Within 5%: cuDNN's workspaces are not predicted."""
    network = Network("revbifpn_s0", mode, 32, 224)
    measured = activation_bytes(*network.on("cuda"), "cuda")
    predicted = activation_bytes(*network.on("meta"), "cuda", "predict")
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("mode", ["plain", *MODES])
def test_a_whole_step_is_captured_in_a_cuda_graph(mode: str) -> None:
    """Replayed steps move the weights as eager ones do; they read their images where the captured step did."""
    images, labels = images_and_labels("cuda")
    network = Network("revbifpn_s0", mode, BATCH, SIDE)
    eager, graphed = (network.build(variant=SMALL, num_classes=10, drop_rate=0.0).cuda() for _ in range(2))
    graphed.load_state_dict(eager.state_dict())
    replay = captured(trainer(graphed, images, labels, "float32", "cuda"), "cuda")
    step = trainer(eager, images, labels, "float32", "cuda")
    for _ in range(4):  # three to warm up, and the capture, which computes nothing
        step()
    eager.load_state_dict(graphed.state_dict())
    for _ in range(2):
        replay()
        step()
    torch.cuda.synchronize()
    for (name, ours), theirs in zip(graphed.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def _norms_rank(rank: int, port: int, path: Path) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(RevBiFPN(SMALL, num_classes=10, drop_rate=0.0)).cuda(rank).train()
    ddp = nn.parallel.DistributedDataParallel(model, device_ids=[rank])
    images, labels = images_and_labels(f"cuda:{rank}")
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    F.cross_entropy(ddp(images[half]), labels[half]).backward()
    if rank == 0:
        torch.save(torch.cat([param.grad.flatten() for param in model.parameters()]).cpu(), path)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_sync_batch_norm_over_nccl_equals_one_device_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawned = torch.multiprocessing.spawn(_norms_rank, (port, tmp_path / "grads.pt"), nprocs=2, join=False)
    deadline = time.monotonic() + 180
    while not spawned.join(timeout=10):  # raises what a process raised
        assert time.monotonic() < deadline, "the processes wait for each other"
    ours = torch.load(tmp_path / "grads.pt")
    assert relative(ours, gradients(make("reversible", "cuda"), "cuda")) < 1e-3


def test_edges_compiled_by_inductor_train() -> None:
    from revbifpn import compile_edges

    model: Callable[..., Any] = compile_edges(make("reversible", "cuda"))
    assert relative(gradients(model, "cuda"), gradients(make("reversible", "cuda"), "cuda")) < 1e-3  # type: ignore[arg-type]


def test_a_plain_form_replays_on_the_device() -> None:
    """With dropout: the device's random state is kept and set."""
    from revbifpn.reversible import ReversibleSequential, RevSilo

    torch.manual_seed(0)
    chain = ReversibleSequential(RevSilo({(0, 1): Edge(0, 1, dropout=0.5)}, {}), exact=True).cuda().train()
    stored = set_reversible(copy.deepcopy(chain), False)
    found = []
    for model in (chain, stored):
        torch.manual_seed(3)
        streams = [torch.ones(2, 4, 16, 16, device="cuda"), torch.ones(2, 6, 8, 8, device="cuda")]
        loss = sum(stream.square().sum() for stream in model(*streams))
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
