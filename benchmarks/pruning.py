"""One-shot pruning of networks trained on Fashion-MNIST, and what CSR products gain on this machine.

    python -m benchmarks.pruning [--parts accuracy csr] [--data FOLDER] [--json benchmarks/pruning.json]

``accuracy`` trains a small RevBiFPN and a small ResNet (the weights are kept in ``--work-dir`` and not trained again), prunes
each to 50, 70 and 80% by magnitude, Wanda and SparseGPT, counts the right answers on the 10,000 test images with and without
repaired batch norms, and trains the sparsest on with its zeros held, with and without the dense network as teacher. ``csr``
times ``use_csr`` on RevBiFPN-S0 at rising sparsities. ``--data`` is the folder with Debian's ``dataset-fashion-mnist``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from benchmarks.common import describe, environment, table, update_json
from revbifpn.datasets.fashion_mnist import FILES, read_idx
from revbifpn.models import RevBiFPN, Variant
from revbifpn.sparsity.compact import sizes
from revbifpn.sparsity.csr import use_csr
from revbifpn.sparsity.distill import train_pruned
from revbifpn.sparsity.prune import METHODS, prune
from revbifpn.sparsity.repair import repair_statistics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/pruning.json"
MEAN, STD = 0.2860, 0.3530  # of the training images, for values in 0..1
SIDE = 32
BATCH = 128
CALIBRATION = 256
SPARSITIES = (0.5, 0.7, 0.8)
CSR_SPARSITIES = (0.5, 0.8, 0.9, 0.95)

Data = Mapping[str, tuple[Tensor, Tensor]]


def small_revbifpn() -> nn.Module:
    """RevBiFPN of a third of S0's width: 16 to 48 channels."""
    return RevBiFPN(Variant("third", Fraction(1, 3), 0, SIDE, 0.0, 0.0), num_classes=10, in_chans=1)


def small_resnet() -> nn.Module:
    """A ResNet of four basic blocks, 16 to 128 channels, whose 3x3 convolutions hold nearly all weights."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10, in_chans=1, channels=(16, 32, 64, 128))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"RevBiFPN, third width": small_revbifpn, "ResNet, 4 blocks": small_resnet}


def load(folder: Path, train: int | None = None, val: int | None = None) -> Data:
    """Normalized images (N, 1, 32, 32) and labels of both splits."""
    data = {}
    for split, count in (("train", train), ("val", val)):
        images, labels = FILES[split]
        pixels = torch.from_numpy(read_idx(folder / images, 3).copy())[:count].float() / 255
        padded = F.pad((pixels - MEAN) / STD, (2, 2, 2, 2), value=-MEAN / STD)
        data[split] = padded[:, None], torch.from_numpy(read_idx(folder / labels, 1).copy())[:count].long()
    return data


def batches(data: Data, epochs: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled training batches, flipped and shifted by up to 2 pixels."""
    images, labels = data["train"]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps_of(data, epochs)):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        batch = images[chosen]
        if int(torch.randint(2, (1,), generator=generator)):
            batch = batch.flip(3)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        yield batch.roll(shift, (2, 3)), labels[chosen]


def steps_of(data: Data, epochs: float) -> int:
    """Steps of so many epochs, at least one."""
    return max(1, round(epochs * len(data["train"][0]) / BATCH))


def trained(name: str, data: Data, epochs: float, work_dir: Path) -> nn.Module:
    """A network with the weights that are kept, or trained now."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    path = work_dir / f"{name.split(',')[0].lower()}-{len(data['train'][0])}-{epochs:g}.pth"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = steps_of(data, epochs)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.2)
    begin = time.perf_counter()
    train_pruned(model, {}, batches(data, epochs, seed=0), optimizer, scheduler=scheduler)
    print(f"{name}: trained for {steps} steps in {time.perf_counter() - begin:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


@torch.inference_mode()
def top1(model: nn.Module, data: Data) -> float:
    """Percent of the test images that are named rightly."""
    images, labels = data["val"]
    model.eval()
    right = sum(
        int((model(batch).argmax(1) == wanted).sum())
        for batch, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(labels)


def accuracy(name: str, data: Data, epochs: float, train_on: float, work_dir: Path) -> dict[str, Any]:
    """All prunings of a network."""
    dense = trained(name, data, epochs, work_dir)
    chosen = torch.randperm(len(data["train"][0]), generator=torch.Generator().manual_seed(1))[:CALIBRATION]
    calibration = data["train"][0][chosen]
    result: dict[str, Any] = {"network": name, "dense": top1(dense, data), "epochs": epochs, "calibration": len(calibration)}
    result["parameters"] = sum(parameter.numel() for parameter in dense.parameters())
    rows: list[dict[str, Any]] = []
    for sparsity in SPARSITIES:
        for method in METHODS:
            model = copy.deepcopy(dense)
            begin = time.perf_counter()
            pruning = prune(model, calibration, sparsity, method=method, repair=False)
            seconds = time.perf_counter() - begin
            plain = top1(model, data)
            repair_statistics(model, calibration.split(64))
            row = {"sparsity": sparsity, "method": method, "plain": plain, "repaired": top1(model, data), "seconds": seconds}
            found = sizes(model.state_dict(), pruning.masks)
            row |= {"dense_bytes": found.dense, "compact_bytes": found.compact, "zeros": pruning.zeros}
            if sparsity == SPARSITIES[-1] and method == "sparsegpt":
                for key, teacher in (("trained", None), ("distilled", dense)):
                    student = copy.deepcopy(model)
                    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, weight_decay=0.0)
                    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps_of(data, train_on))
                    steps = batches(data, train_on, seed=2)
                    train_pruned(student, pruning.masks, steps, optimizer, scheduler=decay, teacher=teacher)
                    row[key] = top1(student, data)
                row["trained_epochs"] = train_on
            print(f"{name}, {sparsity:.0%}, {method}: {row['plain']:.2f}, repaired {row['repaired']:.2f}", flush=True)
            rows.append(row)
    return result | {"rows": rows}


def measured(path: Path | None) -> list[dict[str, Any]]:
    """The networks that a file has; those that are not asked for stay in it."""
    content = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    networks: list[dict[str, Any]] = content.get("accuracy", {}).get("networks", [])
    return networks


def csr(side: int, repeats: int) -> list[dict[str, Any]]:
    """``use_csr`` on RevBiFPN-S0 with one image: what the layers gain, and the whole network."""
    rows = []
    for sparsity in CSR_SPARSITIES:
        torch.manual_seed(0)
        model = RevBiFPN("s0").eval()
        prune(model, None, sparsity, method="magnitude")
        _, timing = use_csr(model, torch.randn(1, 3, side, side), repeats=repeats)
        gains = sorted(layer.gain for layer in timing.layers)
        row: dict[str, Any] = {"sparsity": sparsity, "layers": len(gains), "used": sum(layer.used for layer in timing.layers)}
        row |= {"gain_median": gains[len(gains) // 2], "gain_least": gains[0], "gain_most": gains[-1]}
        rows.append(row | {"dense_ms": 1e3 * timing.dense, "csr_ms": 1e3 * timing.csr})
        print(f"CSR, {sparsity:.0%}: {row['used']} of {row['layers']} layers gain", flush=True)
    return rows


def accuracy_table(content: Mapping[str, Any]) -> str:
    """Top-1 in Markdown."""
    names = {"sparsegpt": "SparseGPT", "wanda": "Wanda", "magnitude": "magnitude"}
    lines = []
    for network in content["networks"]:
        title = f"{network['network']}, {network['parameters']:,} parameters"
        lines.append([title, "dense", "", f"{network['dense']:.2f}", ""])
        for row in network["rows"]:
            size = f"{row['compact_bytes'] / 1e3:,.0f} of {row['dense_bytes'] / 1e3:,.0f}"
            scores = [f"{row['plain']:.2f}", f"{row['repaired']:.2f}", size]
            lines.append([f"{row['sparsity']:.0%}", names[row["method"]], *scores])
    return table(["zeros", "method", "top-1 without repair, %", "top-1 with repaired norms, %", "compact file, kB"], lines)


def training_text(content: Mapping[str, Any]) -> str:
    """What training on gave, a sentence for each network."""
    sentences = []
    for network in content["networks"]:
        for row in network["rows"]:
            if "trained" in row:
                sentences.append(
                    f"- *{network['network']}* at {row['sparsity']:.0%} (SparseGPT, repaired: {row['repaired']:.2f}%) came to "
                    f"{row['trained']:.2f}% in {row['trained_epochs']:g} epochs of training with its zeros held, and to "
                    f"{row['distilled']:.2f}% with SquareHead from the dense network, which has {network['dense']:.2f}%."
                )
    return "\n".join(sentences)


def csr_table(content: Mapping[str, Any]) -> str:
    """What CSR gave, in Markdown."""
    lines = [
        [
            f"{row['sparsity']:.0%}",
            f"{row['used']} of {row['layers']}",
            f"{row['gain_median']:.2f} ({row['gain_least']:.2f} - {row['gain_most']:.2f})",
            f"{row['dense_ms']:.1f}",
            f"{row['csr_ms']:.1f}",
        ]
        for row in content["rows"]
    ]
    header = [
        "zeros",
        "layers changed",
        "gain of a layer, median (range)",
        "network dense, ms",
        "with those layers in CSR, ms",
    ]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("accuracy", "csr"), default=["accuracy", "csr"])
    parser.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="the four *-ubyte.gz files"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--epochs", type=float, default=3, help="of the dense training")
    parser.add_argument("--train-on", type=float, default=0.5, help="epochs of training with the zeros held")
    parser.add_argument("--train-images", type=int, help="take the first so many alone")
    parser.add_argument("--val-images", type=int, help="take the first so many alone")
    parser.add_argument("--side", type=int, default=224, help="of the images that CSR is timed with, in pixels")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs/pruning", help="folder for the trained weights")
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those that are there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    env = environment()
    print(describe(env))
    if "accuracy" in args.parts:
        data = load(args.data, args.train_images, args.val_images)
        found = {row["network"]: row for row in measured(args.json)}
        for name in args.networks:
            found[name] = accuracy(name, data, args.epochs, args.train_on, args.work_dir)
            result = {"environment": env, "networks": [found[name] for name in NETWORKS if name in found]}
            if args.json is not None:
                update_json(args.json, {"accuracy": result})
        print(accuracy_table(result))
        print(training_text(result))
    if "csr" in args.parts:
        result = {"environment": env, "side": args.side, "rows": csr(args.side, args.repeats)}
        print(csr_table(result))
        if args.json is not None:
            update_json(args.json, {"csr": result})


if __name__ == "__main__":
    main()
