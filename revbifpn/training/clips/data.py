"""Clips for MMEngine's dataloaders: frames are sampled, decoded, and augmented alike within a clip.

A sample is a dict: ``inputs`` (uint8, T x 3 x H x W), ``labels`` (for each output a level, -1 if missing, or probabilities,
NaN if missing) and ``indices`` (int, its place in the data set). Normalization follows on the device
(:class:`.ClipPreprocessor`).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from revbifpn.datasets.clip_files import ClipError, read_frames, require_pyav, segment_indices
from revbifpn.datasets.clips import MISSING, Clip, ClipSplit, check_splits, read_clip_folder
from revbifpn.datasets.daisee import read_daisee
from revbifpn.training.errors import ConfigError

_MOST_SKIPPED_IN_A_ROW = 10

Sample = dict[str, Any]


def levels_of(outputs: Mapping[str, int | Mapping[str, Any]]) -> dict[str, int]:
    """Numbers of levels of outputs, as a :class:`.ClipClassifier` takes them."""
    return {name: output if isinstance(output, int) else int(output["levels"]) for name, output in outputs.items()}


def read_split(settings: Mapping[str, Any]) -> ClipSplit:
    """Read a split as the arguments of a :class:`ClipDataset` say.

    Raises:
        FileNotFoundError, DataError: see :func:`.read_clip_folder` and :func:`.read_daisee`.
        ConfigError: for another layout, or soft labels of DAiSEE, which has none.
    """
    layout, root, outputs = settings.get("layout", "folder"), Path(settings["root"]), levels_of(settings["outputs"])
    soft_labels = settings.get("soft_labels")
    if layout == "folder":
        return read_clip_folder(root, settings["split"], outputs, soft_labels)
    if layout != "daisee":
        raise ConfigError(f"a clip data set's layout is 'folder' or 'daisee', got {layout!r}")
    if soft_labels:
        raise ConfigError("soft_labels go with layout='folder'")
    return read_daisee(root, settings["split"], outputs)


@DATASETS.register_module()
class ClipDataset(Dataset[Sample]):
    """A split of a clip folder (:mod:`revbifpn.datasets.clips`) or of DAiSEE (:mod:`revbifpn.datasets.daisee`).

    Clips without any label are left out, and named in the log.

    Args:
        root: folder of the data.
        split: name of the split: ``<split>.csv`` of a clip folder, or ``"Train"``, ``"Validation"``, ``"Test"``.
        outputs: those of the model; names of the columns.
        frames: T, how many frames of a clip are taken (:func:`.segment_indices`).
        transform: what happens to the frames: classes of ``torchvision.transforms.v2`` with their arguments, such as
            ``dict(type="RandomResizedCrop", size=224)``. Their random numbers are drawn once for all frames of a clip.
        layout: ``"folder"`` or ``"daisee"``.
        training: take random frames of the segments, and replace a clip that cannot be decoded by the next one.
        on_error: ``"stop"`` raises at a clip that cannot be decoded, and at labels without a file. ``"skip"`` names them in
            the log and goes on: in training with the next clip, else without it (it does not count).
        soft_labels: for some outputs a CSV file of probabilities.

    Attributes:
        split: what was found, :class:`.ClipSplit`.

    Raises:
        FileNotFoundError: if the data is missing.
        DataError: if it is at fault (:func:`.check_splits`).
        ConfigError: for another layout or ``on_error``, or a transform that torchvision does not have.
        ImportError: without PyAV.
    """

    def __init__(
        self,
        root: str,
        split: str,
        outputs: Mapping[str, int | Mapping[str, Any]],
        frames: int,
        transform: Sequence[Mapping[str, Any]],
        layout: str = "folder",
        training: bool = False,
        on_error: str = "stop",
        soft_labels: Mapping[str, str] | None = None,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
        if frames < 1:
            raise ConfigError(f"a clip data set takes 1 frame of a clip at least, got frames={frames}")
        require_pyav()
        self.transform = make_transform(transform)
        self.split = read_split(dict(root=root, split=split, outputs=outputs, layout=layout, soft_labels=soft_labels))
        check_splits([self.split], may_miss=[split] if on_error == "skip" else [])
        print_log(str(self.split), logger="current")
        self.outputs = levels_of(outputs)
        self.soft = frozenset(soft_labels or ())
        self.frames, self.training, self.on_error = frames, training, on_error
        self.metainfo = {"outputs": tuple(self.outputs)}
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.split.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample at an index; at ``(index, seed)`` with frames and augmentation that depend on the seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        with _seeded(seed) if seed is not None else contextlib.nullcontext():
            frames, index = self._read(index)
            if frames is None:
                blank = torch.zeros(self.frames, 3, 256, 256, dtype=torch.uint8)
                return {"inputs": self._transformed(blank), "labels": self._labels(None), "indices": index}
            return {"inputs": self._transformed(frames), "labels": self._labels(self.split.clips[index]), "indices": index}

    def _transformed(self, frames: Tensor) -> Tensor:
        transformed = self.transform(tv_tensors.Video(frames)).as_subclass(Tensor)
        if transformed.dtype != torch.uint8 or transformed.ndim != 4:
            raise ConfigError(
                f"the transform made {transformed.dtype} of shape {tuple(transformed.shape)} of a clip; it has to return "
                "uint8 (T, 3, H, W), since the data preprocessor normalizes"
            )
        return transformed

    def _labels(self, clip: Clip | None) -> dict[str, Tensor]:
        labels = {}
        for place, (name, levels) in enumerate(self.outputs.items()):
            label = MISSING if clip is None else clip.labels[place]
            if name in self.soft:
                row = label if isinstance(label, tuple) else (float("nan"),) * levels
                labels[name] = torch.tensor(row, dtype=torch.float32)
            else:
                labels[name] = torch.tensor(label)
        return labels

    def _read(self, index: int) -> tuple[Tensor | None, int]:
        """Frames (T, 3, H, W), None for a clip that is left out, and the index of the clip that they are of."""
        for step in range(_MOST_SKIPPED_IN_A_ROW + 1):
            at = (index + step) % len(self)
            try:
                return self._decode(self.split.clips[at]), at
            except ClipError as error:
                if self.on_error == "stop":
                    raise ClipError(
                        f"{error}. Repair or remove it; on_error='skip' in the data set's config leaves such clips out"
                    ) from error
                message = str(error)
                self._say_once(self.split.clips[at], f"{message}: skipped")
                if not self.training:
                    return None, at
        raise ClipError(f"{_MOST_SKIPPED_IN_A_ROW + 1} clips in a row cannot be decoded, the last: {message}")

    def _decode(self, clip: Clip) -> Tensor:
        images, length, declared = read_frames(
            clip.path, lambda count: segment_indices(count, self.frames, jitter=self.training)
        )
        if declared > length:
            self._say_once(clip, f"clip {clip.path} has {length} of the {declared} frames that it declares: these are taken")
        elif length < self.frames:
            self._say_once(clip, f"clip {clip.path} has {length} frames, fewer than {self.frames}: its last one is repeated")
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def _say_once(self, clip: Clip, message: str) -> None:
        if clip.name not in self._named:
            self._named.add(clip.name)
            print_log(message, logger="current", level=30)


def make_transform(steps: Sequence[Mapping[str, Any]]) -> v2.Transform:
    """Make a transform from classes of ``torchvision.transforms.v2`` by name.

    Raises:
        ConfigError: for a name that there is not, or arguments that do not fit.
    """
    made: list[Any] = [v2.Identity()]
    for step in steps:
        arguments = dict(step)
        name = arguments.pop("type", None)
        kind = getattr(v2, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            known = [key for key, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)]
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"torchvision.transforms.v2 has no transform {name!r}{hint}")
        try:
            made.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"transform {name}: {error}") from error
    return v2.Compose(made)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random state from a seed: segments and torchvision draw from no other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
