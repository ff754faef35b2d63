"""Pruning a classifier's checkpoint with the images of a folder: accuracy before and after, training on, and the file."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from revbifpn.datasets.image_folders import DataError
from revbifpn.sparsity.compact import Sizes, save_compact
from revbifpn.sparsity.distill import train_pruned
from revbifpn.sparsity.prune import Method, Pruning, prune
from revbifpn.sparsity.report import load_model
from revbifpn.training.classification.data import SKIPPED, ClassificationDataset
from revbifpn.training.classification.model import ImagePreprocessor

WARMUP = 20  # steps; the schedule of sparse fine-tuning after arXiv 2310.06927


@dataclass(frozen=True)
class Training:
    """How a pruned network is trained on.

    Attributes:
        epochs: over the training images; 0 for none.
        lr: of AdamW without weight decay, after a warm-up over 20 steps; it falls linearly to zero.
        batch_size: images in a step.
        distill: match the dense network's features too (SquareHead).
    """

    epochs: int = 0
    lr: float = 1e-4
    batch_size: int = 32
    distill: bool = False


@dataclass(frozen=True)
class PrunedCheckpoint:
    """What was done.

    Attributes:
        images: in the validation.
        before, after, trained: top-1 in percent, of the dense network, after pruning and after training on (None without).
        calibration: images that pruning used.
        sizes: bytes of the written tensors, and what they were.
    """

    model: str
    checkpoint: str
    target: str
    pruning: Pruning
    calibration: int
    images: int
    before: float
    after: float
    trained: float | None
    sizes: Sizes

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the masks, which are in the file."""
        layers = [asdict(layer) | {"density": layer.density} for layer in self.pruning.layers]
        names = ("model", "checkpoint", "target", "calibration", "images", "before", "after", "trained")
        return {name: getattr(self, name) for name in names} | {
            "method": self.pruning.method,
            "sparsity": str(self.pruning.amount),
            "repaired_norms": self.pruning.repaired,
            "bytes": {"dense": self.sizes.dense, "compact": self.sizes.compact},
            "layers": layers,
        }

    def __str__(self) -> str:
        trained = "" if self.trained is None else f"\ntop-1:       {self.trained:.2f} % trained on, with the zeros held"
        return (
            f"{self.pruning.table()}\n\n"
            f"model:       {self.model}, {self.checkpoint}\n"
            f"pruned:      {self.pruning.amount} of {len(self.pruning.layers)} layers, {self.pruning.method}, "
            f"{self.calibration} images; statistics of {self.pruning.repaired} batch norms repaired\n"
            f"top-1:       {self.before:.2f} % dense, {self.after:.2f} % pruned, on {self.images} images{trained}\n"
            f"written:     {self.target}, {self.sizes.compact:,} bytes of tensors instead of {self.sizes.dense:,}"
        )


def prune_checkpoint(
    model: str,
    checkpoint: str | Path,
    data: Path,
    sparsity: float | str,
    target: Path,
    *,
    method: Method = "sparsegpt",
    dense: Sequence[str] = (),
    repair: bool = True,
    calibration_images: int = 128,
    training: Training | None = None,
    train_split: str = "train",
    val_split: str = "val",
    batch_size: int = 64,
    workers: int = 4,
    input_size: int | None = None,
    crop_pct: float | None = None,
    on_error: str = "stop",
    ema: bool = True,
    device: str = "cpu",
    seed: int = 0,
    overwrite: bool = False,
) -> PrunedCheckpoint:
    """Prune a checkpoint and write the result into a compact file.

    Args:
        model: timm's name.
        checkpoint: a file or address; the model gets as many classes as it has.
        data: folder with ``<split>/<class>/<image>``. Images for calibration are drawn from ``train_split``, prepared as for
            validation; accuracy is that on ``val_split``.
        sparsity, method, dense, repair: see :func:`.prune`.
        target: the ``.safetensors`` file to write.
        training: how to train the pruned network on; None for not at all.
        on_error: ``"stop"`` at an image that cannot be decoded, or ``"skip"`` it.
        seed: of all choices.
        overwrite: replace a target that exists.

    Raises:
        FileNotFoundError, CheckpointError: if the checkpoint cannot be read, does not fit, or the target not be written.
        DataError: if the data does not fit the model, or an image cannot be decoded.
        ValueError: see :func:`.prune`; or if timm knows no such model.
    """
    if target.suffix != ".safetensors" or (target.exists() and not overwrite):
        what = "exists (--overwrite replaces it)" if target.exists() else "must end in .safetensors"
        raise ValueError(f"the file to write, {target}, {what}")
    if calibration_images < 2:
        raise ValueError(f"calibration needs at least 2 images, and a hundred or more to be good; got {calibration_images}")
    if not timm.is_model(model):
        raise ValueError(f"timm knows no model {model!r}; revbifpn_s0 to revbifpn_s6 are those of this project")
    torch.manual_seed(seed)
    network, _ = load_model(model, checkpoint, ema=ema)
    network.to(device)
    images = _Images(network, data, batch_size, workers, input_size, crop_pct, on_error, device)
    validation = images.dataset(val_split)
    before, counted = images.top1(network, validation)
    drawn = images.draw(images.dataset(train_split), calibration_images, seed)
    teacher = copy.deepcopy(network) if training and training.distill else None
    pruning = prune(network, drawn, sparsity, method=method, dense=dense, repair=repair, seed=seed)
    after, _ = images.top1(network, validation)
    trained = None
    if training and training.epochs:
        train_on(network, pruning, images, train_split, training, teacher)
        trained, _ = images.top1(network, validation)
    sizes = save_compact(network.state_dict(), target, pruning.masks, overwrite=overwrite)
    found = (len(drawn), counted, before, after, trained)
    return PrunedCheckpoint(model, str(checkpoint), str(target), pruning, *found, sizes)


def train_on(
    network: nn.Module, pruning: Pruning, images: _Images, split: str, training: Training, teacher: nn.Module | None
) -> None:
    """Train a pruned network for some epochs, with its zeros held."""
    dataset = images.dataset(split, training=True)
    loader = images.loader(dataset, training.batch_size, shuffle=True)
    steps = len(loader) * training.epochs
    if not steps:
        raise DataError(f"{len(dataset)} training images are fewer than a batch of {training.batch_size}")
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=0.0)
    warmup = min(WARMUP, steps // 2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))
    )
    batches = (batch for _ in range(training.epochs) for batch in images.batches(loader))
    train_pruned(network, pruning.masks, batches, optimizer, scheduler=scheduler, teacher=teacher)


class _Images:
    """The images of a folder, prepared for a model."""

    def __init__(
        self,
        model: nn.Module,
        root: Path,
        batch_size: int,
        workers: int,
        input_size: int | None,
        crop_pct: float | None,
        on_error: str,
        device: str,
    ) -> None:
        cfg = resolve_data_config(model=model)
        self.num_classes = int(model.num_classes)  # type: ignore[arg-type]  # an int of every timm model
        self.transform = {
            "input_size": input_size or cfg["input_size"][-1],
            "crop_pct": crop_pct or cfg["crop_pct"],
            "interpolation": cfg["interpolation"],
        }
        self.root, self.batch_size, self.workers, self.on_error = root, batch_size, workers, on_error
        self.prepare = ImagePreprocessor(cfg["mean"], cfg["std"]).to(device)

    def dataset(self, split: str, training: bool = False) -> ClassificationDataset:
        """A split of the folder; augmented for training."""
        transform = dict(self.transform)
        if training:
            del transform["crop_pct"]
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder: expected {self.root}/{split}/<class>/<image>")
        return ClassificationDataset(
            str(self.root), split, self.num_classes, transform, training=training, on_error=self.on_error
        )

    def loader(self, dataset: Any, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
        """Batches; when shuffled, without a last one that is smaller."""
        return DataLoader(dataset, batch_size, shuffle, num_workers=self.workers, drop_last=shuffle)

    def batches(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images and labels on the device, without those that could not be decoded."""
        for batch in loader:
            batch = self.prepare({"inputs": batch["inputs"], "labels": batch["labels"]})
            good = batch["labels"] != SKIPPED
            if bool(good.any()):
                yield batch["inputs"][good], batch["labels"][good]

    def draw(self, dataset: ClassificationDataset, count: int, seed: int) -> Tensor:
        """Some images at random, (N, C, H, W)."""
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
        loader = self.loader(Subset(dataset, order.tolist()), self.batch_size)
        drawn = [images for images, _ in self.batches(loader)]
        if not drawn:
            raise DataError(f"none of the images that were drawn from {self.root} can be decoded")
        return torch.cat(drawn)

    def top1(self, model: nn.Module, dataset: ClassificationDataset) -> tuple[float, int]:
        """Accuracy in percent, and the images that it is of."""
        right = count = 0
        model.eval()
        with torch.inference_mode():
            for images, labels in self.batches(self.loader(dataset, self.batch_size)):
                right += int((model(images).argmax(1) == labels).sum())
                count += len(labels)
        if not count:
            raise DataError(f"none of the validation images in {self.root} can be decoded")
        return 100 * right / count, count
