"""The trainings of :mod:`benchmarks.sparse_training`: a small ResNet on Fashion-MNIST, dense and sparse."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from benchmarks.common import table
from revbifpn.datasets.fashion_mnist import FILES, read_idx
from revbifpn.sparsity import SparseTraining, count_flops, select_weights, sparse_ift, training_flops

SIZE = (1, 28, 28)
BATCH = 64
METHODS = ("static", "set", "rigl")
SPARSITIES = (0.5, 0.75, 0.9)
UPDATE_EVERY = 20


@dataclass(frozen=True)
class Images:
    """Normalized images (N, 1, 28, 28) with labels (N,), to train on and to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def classes(self, begin: int, end: int, limit: int | None = None) -> Images:
        """Those of some classes, which are numbered from 0 again; the first ``limit`` to train on."""
        chosen = (self.labels >= begin) & (self.labels < end)
        tested = (self.test_labels >= begin) & (self.test_labels < end)
        return Images(
            self.images[chosen][:limit],
            self.labels[chosen][:limit] - begin,
            self.test_images[tested],
            self.test_labels[tested] - begin,
        )


def read_images(source: Path, limit: int) -> Images:
    """The first ``limit`` training images, and as many test images at most, of the four IDX files in a folder."""
    parts: list[Tensor] = []
    for images, labels in (FILES["train"], FILES["val"]):
        pixels = torch.from_numpy(read_idx(source / images, 3)[:limit].astype(np.float32))
        parts += [
            ((pixels / 255 - 0.286) / 0.353)[:, None],
            torch.from_numpy(read_idx(source / labels, 1)[:limit].astype(np.int64)),
        ]
    return Images(*parts)


def small_resnet(width: int, classes: int) -> ResNet:
    """Four basic blocks, of ``width`` to eight times as many channels, behind a stem of three convolutions."""
    model = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=classes,
        in_chans=1,
        channels=(width, 2 * width, 4 * width, 8 * width),
        stem_type="deep",
        stem_width=width // 2,
    )
    model.maxpool = nn.Identity()
    return model


def train(
    model: nn.Module, data: Images, epochs: int, seed: int, lr: float = 0.1, sparsity: Mapping[str, Any] | None = None
) -> None:
    """SGD with Nesterov momentum, weight decay and one cosine, flipped images: Sparse-IFT's CIFAR recipe, shortened.

    No setting is changed for sparsity, as there.

    Args:
        sparsity: arguments of :class:`.SparseTraining`; None trains dense.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(data.images) // BATCH
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    sparse = None
    if sparsity is not None:
        every = min(UPDATE_EVERY, max(1, steps // 4))
        sparse = SparseTraining(model, optimizer, total_steps=steps, update_every=every, seed=seed, **sparsity)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.images), generator=generator)[: per_epoch * BATCH].split(BATCH):
            images = data.images[chosen]
            flipped = torch.rand(len(chosen), generator=generator) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
            optimizer.zero_grad()
            F.cross_entropy(model(images), data.labels[chosen]).backward()
            if sparse is None:
                optimizer.step()
            else:
                sparse.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """Top-1 on the test images in percent."""
    model.eval()
    right = sum(
        int((model(images).argmax(1) == labels).sum())
        for images, labels in zip(data.test_images.split(500), data.test_labels.split(500), strict=True)
    )
    return 100 * right / len(data.test_images)


def wide_trials(data: Images, width: int, epochs: int, seeds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Dense, and Sparse-Wide at each sparsity with each kind of mask, at equal operations."""
    settings: list[tuple[float, str]] = [(0.0, "dense"), *((s, m) for s in SPARSITIES for m in METHODS)]
    rows: list[dict[str, Any]] = []
    for nominal, method in settings:
        top1: list[float] = []
        begin = time.perf_counter()
        for seed in range(seeds):
            torch.manual_seed(seed)
            ift = sparse_ift(small_resnet(width, 10), "wide", nominal, SIZE)
            options = {"sparsity": ift.sparsity, "method": method, "dense": ift.dense}
            train(ift.model, data, epochs, seed, sparsity=options if nominal else None)
            top1.append(round(accuracy(ift.model, data), 2))
        seconds = (time.perf_counter() - begin) / seeds
        rows.append(
            {
                "nominal_sparsity": nominal,
                "method": method,
                "sparsity": ift.sparsity,
                "flops": ift.sparse_flops,
                "parameters": sum(p.numel() for p in ift.model.parameters()),
                "top1": top1,
                "seconds": seconds,
            }
        )
        progress(f"{nominal} {method}: {top1} in {seconds:.1f} s each")
    return {"images": len(data.images), "epochs": epochs, "width": width, "rows": rows}


def spdf_trials(data: Images, width: int, epochs: int, seeds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Pre-training on five classes, dense or sparse, then dense fine-tuning on few images of the other five.

    The sparse ones have the steps of the dense one, and once more so many steps as come to its operations.
    """
    before, after = data.classes(0, 5), data.classes(5, 10, limit=10 * BATCH)
    tune_epochs = 2 * epochs
    settings = [("none", 0.0), ("dense", 0.0), *((how, s) for s in (0.5, 0.75) for how in ("same steps", "same operations"))]
    rows = []
    for how, sparsity in settings:
        top1, pre_top1 = [], []
        model = small_resnet(width, 5)
        flops = count_flops(model, (1, *SIZE))
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = small_resnet(width, 5)
            kept = flops.sparse(dict.fromkeys(select_weights(model), 1 - sparsity))
            pre_epochs = round(epochs * flops.total / kept) if how == "same operations" else epochs
            if how != "none":
                train(
                    model, before, pre_epochs, seed, sparsity={"sparsity": sparsity, "method": "static"} if sparsity else None
                )
                pre_top1.append(round(accuracy(model, before), 2))
            model.reset_classifier(5)
            train(model, after, tune_epochs, seed, lr=0.02)
            top1.append(round(accuracy(model, after), 2))
        steps = (0 if how == "none" else pre_epochs) * (len(before.images) // BATCH)
        tune_steps = tune_epochs * (len(after.images) // BATCH)
        rows.append(
            {
                "pre_training": how,
                "sparsity": sparsity,
                "steps": steps,
                "pre_training_flops": BATCH * training_flops(flops.total, kept, steps),
                "fine_tuning_flops": BATCH * training_flops(flops.total, flops.total, tune_steps),
                "pre_top1": pre_top1,
                "top1": top1,
            }
        )
        progress(f"{how} {sparsity}: {pre_top1} {top1}")
    return {
        "images": len(before.images),
        "fine_tuning_images": len(after.images),
        "epochs": epochs,
        "fine_tuning_epochs": tune_epochs,
        "width": width,
        "rows": rows,
    }


def wide_table(content: Mapping[str, Any]) -> str:
    """Sparse-Wide against dense in Markdown."""
    dense = next(row for row in content["rows"] if row["method"] == "dense")
    lines = []
    for row in content["rows"]:
        name = "dense" if row is dense else f"wide for {row['nominal_sparsity']:.0%}, {row['method']}"
        lines.append(
            [
                name,
                f"{100 * row['sparsity']:.1f}%",
                f"{row['parameters']:,}",
                f"{row['flops'] / dense['flops']:.3f}",
                mean_and_spread(row["top1"]),
                f"{row['seconds'] / dense['seconds']:.1f}",
            ]
        )
    header = ["network, masks", "zeros", "parameters", "operations / dense", "top-1, %: mean (each seed)", "time / dense"]
    what = f"{content['images']:,} training and as many test images, {content['epochs']} epochs of batches of {BATCH}."
    return f"{what}\n\n{table(header, lines)}"


def spdf_table(content: Mapping[str, Any]) -> str:
    """Sparse pre-training and dense fine-tuning against dense in Markdown."""
    dense = next(row for row in content["rows"] if row["pre_training"] == "dense")
    total = dense["pre_training_flops"] + dense["fine_tuning_flops"]
    lines = []
    for row in content["rows"]:
        sparse = f"{row['sparsity']:.0%} zeros, {row['pre_training']}" if row["sparsity"] else row["pre_training"]
        lines.append(
            [
                sparse,
                row["steps"],
                f"{row['pre_training_flops'] / dense['pre_training_flops']:.2f}",
                f"{(row['pre_training_flops'] + row['fine_tuning_flops']) / total:.2f}",
                mean_and_spread(row["pre_top1"]),
                mean_and_spread(row["top1"]),
            ]
        )
    header = [
        "pre-training",
        "its steps",
        "its operations / dense",
        "operations of both phases / dense",
        "top-1 of its classes, %",
        "top-1 after fine-tuning, %: mean (each seed)",
    ]
    what = (
        f"{content['images']:,} images and {content['epochs']} epochs of pre-training, {content['fine_tuning_images']} images "
        f"and {content['fine_tuning_epochs']} epochs of fine-tuning, in batches of {BATCH}. Steps are those of pre-training."
    )
    return f"{what}\n\n{table(header, lines)}"


def mean_and_spread(values: list[float]) -> str:
    """``mean (each value)``; a dash for none."""
    return f"{statistics.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})" if values else "-"
