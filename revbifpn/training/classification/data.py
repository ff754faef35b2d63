"""Data sets of timm for MMEngine's dataloaders, a sampler that makes augmentation reproducible, and bad images by name.

A sample is a dict: ``inputs`` (uint8, 3 x H x W), ``labels`` (int, or class probabilities) and ``indices`` (int, its place in
the data set, -1 if unknown). Normalization and random erasing follow on the device (:class:`.ImagePreprocessor`), as with
timm's prefetcher.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import Runner
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.dataset_factory import _search_split
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.classification.soft_labels import read_soft_labels

SKIPPED = -1  # label of a validation sample that could not be decoded
_MOST_SKIPPED_IN_A_ROW = 10

Sample = dict[str, Any]


class ImageError(DataError):
    """An image cannot be decoded."""


@DATASETS.register_module()
class ClassificationDataset(Dataset[Sample]):
    """A data set that timm reads by index: image folders, tar files, and those of torchvision and Hugging Face.

    Args:
        root: folder or file of the data.
        split: ``"train"`` or ``"val"``, or what the data set calls it; for folders the sub-folder, with timm's synonyms.
        num_classes: labels must be below it; None, which a config may hold until the class folders are counted, is refused.
        transform: arguments of ``timm.data.create_transform``: ``input_size``, ``is_training``, ``auto_augment``, ...
        name: timm's name of the data set, such as ``"hfds/..."`` or ``"torch/..."``; empty for folders and tar files.
        training: whether a sample that cannot be decoded may be replaced by the next one.
        on_error: ``"stop"`` raises at an image that cannot be decoded. ``"skip"`` names it in the log and goes on: in
            training with the next image, in validation without it (its label is -1).
        options: further arguments of ``create_dataset``, such as ``class_map`` or ``input_img_mode``.
        soft_labels: CSV file of class probabilities (:func:`.read_soft_labels`), which training on an image folder takes for
            targets; ``labels`` of a sample then is (num_classes,) float32.

    Raises:
        ValueError: for another ``on_error``, or if ``num_classes`` was left open.
        DataError: if there are no images, a label is out of range, or soft labels do not fit the images.
    """

    def __init__(
        self,
        root: str,
        split: str,
        num_classes: int | None,
        transform: dict[str, Any],
        name: str = "",
        training: bool = False,
        on_error: str = "stop",
        options: dict[str, Any] | None = None,
        soft_labels: str | None = None,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
        if num_classes is None:
            raise ValueError("num_classes is None: give a number (revbifpn-train counts the class folders for such a config)")
        self.training = training
        self.on_error = on_error
        self.num_classes = num_classes
        self.transform = _transform(transform, training)
        if not name and split and os.path.isdir(root) and _search_split(root, split) == root:
            # timm would take the root itself: training and validation images together.
            raise DataError(f"{root} has no folder for split {split!r}: expected {root}/{split}/<class>/<image>")
        try:
            self.data = create_dataset(name, root=root, split=split, is_training=training, **(options or {}))
        except RuntimeError as error:  # timm's "Found 0 images"
            raise DataError(f"{root}, split {split}: {error}") from error
        self.metainfo = _metainfo(self.data)
        self._mode = getattr(self.data, "input_img_mode", "RGB")
        self._named: set[int] = set()
        reader = getattr(self.data, "reader", None)
        if isinstance(reader, ReaderImageFolder):  # others tell a label when they read its sample
            for index, (_, label) in enumerate(reader.samples):
                self._check_label(label, index)
        self.soft_labels = None if soft_labels is None else self._soft_labels(soft_labels, reader)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample at an index; at ``(index, seed)`` with augmentation that depends on the seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, label, index = self._read(index)
        if label == SKIPPED:
            pixels = self.transform(Image.new(self._mode or "RGB", (256, 256)))
        else:
            with _seeded(seed) if seed is not None else contextlib.nullcontext():
                pixels = self.transform(image)
        target = label if self.soft_labels is None else self.soft_labels[index]
        return {"inputs": pixels, "labels": target, "indices": index}

    def _soft_labels(self, path: str, reader: Any) -> Tensor:
        if not self.training or not isinstance(reader, ReaderImageFolder):
            raise DataError("soft_labels is for training on an image folder; validation counts the folders' own classes")
        classes = self.metainfo["classes"]
        if len(classes) != self.num_classes:
            raise DataError(f"soft_labels needs the model's {self.num_classes} classes as folders, there are {len(classes)}")
        return read_soft_labels(Path(path), classes, [reader.filename(index) for index in range(len(reader))])

    def _read(self, index: int) -> tuple[Image.Image | None, int, int]:
        for step in range(_MOST_SKIPPED_IN_A_ROW + 1):
            at = (index + step) % len(self)
            try:
                image, label = self._decode(at)
            except Exception as error:  # Pillow raises all kinds: OSError, SyntaxError, struct.error, ...
                message = f"{self.describe(at)} cannot be decoded ({type(error).__name__}: {error})"
                if self.on_error == "stop":
                    raise ImageError(
                        f"{message}. Repair or remove it; on_error='skip' in the data set's config leaves such images out"
                    ) from error
                if at not in self._named:
                    self._named.add(at)
                    print_log(f"{message}: skipped", logger="current", level=30)
                if not self.training:
                    return None, SKIPPED, at
                continue
            self._check_label(label, at)
            return image, int(label), at
        raise ImageError(f"{_MOST_SKIPPED_IN_A_ROW + 1} images in a row cannot be decoded, the last: {message}")

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        reader = getattr(self.data, "reader", None)
        if reader is None:  # of torchvision
            image, label = self.data[index]
            return image.convert(self._mode), label
        file, label = reader[index][:2]
        with contextlib.closing(file) if isinstance(file, io.IOBase) else contextlib.nullcontext():
            picture = file if isinstance(file, Image.Image) else Image.open(file)
            return picture.convert(self._mode), label

    def _check_label(self, label: Any, index: int) -> None:
        if label is None or not 0 <= int(label) < self.num_classes:
            raise DataError(
                f"{self.describe(index)} has label {label}, out of range 0..{self.num_classes - 1}: the model has "
                f"{self.num_classes} classes (model.num_classes)"
            )

    def describe(self, index: int) -> str:
        """Return the sample's file name, if it has one, and its index."""
        try:
            return f"image {self.data.reader.filename(index, absolute=True)} (index {index})"
        except (AttributeError, NotImplementedError, AssertionError):
            return f"image {index} of {type(self.data).__name__}"


@DATASETS.register_module()
class IterableClassificationDataset(IterableDataset[Sample]):
    """A stream that timm reads: WebDataset (``wds/``), streamed Hugging Face (``hfids/``) and TensorFlow (``tfds/``) data.

    Use it with ``sampler=None`` in the dataloader, and :class:`DatasetEpochHook`. The readers shard by process and worker
    themselves, and where shards are uneven they may repeat or leave out validation samples: take a data set with an index
    where every image must count once. Bad images are timm's to handle, and resuming begins the epoch's order anew.

    Args:
        name: timm's name, with its prefix.
        batch_size, num_workers: the dataloader's, by which the readers make their epochs whole batches.
        root, split, num_classes, transform, training, options: see :class:`ClassificationDataset`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        num_classes: int,
        transform: dict[str, Any],
        batch_size: int,
        num_workers: int = 0,
        root: str = "",
        training: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.num_classes = num_classes
        options = {"batch_size": batch_size, **(options or {})}
        self.data = create_dataset(name, root=root, split=split, is_training=training, **options)
        self.data.set_loader_cfg(num_workers=num_workers)
        self.data.transform = _transform(transform, training)
        self.metainfo = _metainfo(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Take another order for another epoch, where the reader shuffles."""
        self.data.set_epoch(epoch)

    def __iter__(self) -> Iterator[Sample]:
        for number, (pixels, label) in enumerate(self.data):
            if not 0 <= int(label) < self.num_classes:
                raise DataError(
                    f"sample {number} of {type(self.data.reader).__name__} has label {label}, out of range "
                    f"0..{self.num_classes - 1}: the model has {self.num_classes} classes (model.num_classes)"
                )
            yield {"inputs": pixels, "labels": int(label), "indices": -1}


@HOOKS.register_module()
class DatasetEpochHook(Hook):
    """Tells a streamed training set its epoch, as MMEngine's hook tells samplers."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the epoch of an :class:`IterableClassificationDataset`."""
        dataset = runner.train_loop.dataloader.dataset
        if isinstance(dataset, IterableClassificationDataset):
            dataset.set_epoch(runner.epoch)


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler`` for training, that hands a seed to each sample's augmentation.

    The seed depends on the run's seed, the epoch and the index alone. So augmentation is the same with any number of workers
    and processes, and after resuming, bit for bit.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        for index in super().__iter__():
            sequence = np.random.SeedSequence((self.seed, self.epoch, index))
            yield index, int(sequence.generate_state(1)[0])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's random state from a seed; those from before afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _transform(arguments: dict[str, Any], training: bool) -> Any:
    return create_transform(**{"is_training": training, **arguments}, use_prefetcher=True)


def _metainfo(data: Any) -> dict[str, Any]:
    classes = getattr(getattr(data, "reader", data), "class_to_idx", None) or {}
    return {"classes": tuple(sorted(classes, key=classes.__getitem__))}
