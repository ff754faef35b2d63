"""Frames of a clip: which ones, and their decoding by PyAV (extra ``video``), in order and without seeking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from revbifpn.datasets.image_folders import DataError

CLIP_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


class ClipError(DataError):
    """A clip cannot be decoded."""


class Frames(NamedTuple):
    """Frames of a clip.

    Attributes:
        images: (T, H, W, 3) uint8, red, green, blue.
        length: how many frames the clip has.
        declared: how many its container says that it has; 0 where it does not say.
    """

    images: NDArray[np.uint8]
    length: int
    declared: int


def segment_indices(count: int, frames: int, jitter: bool) -> list[int]:
    """Choose frames as TSN does (Wang et al., "Temporal Segment Networks"): one of each of ``frames`` equal segments.

    A clip with fewer frames gives all that it has, and its last one again.

    Args:
        count: frames of the clip.
        frames: T, how many to choose.
        jitter: a frame of the segment at random (torch's generator), as in training; else the one in its middle.

    Returns:
        T indices, ascending.

    Raises:
        ValueError: for fewer than one of either.
    """
    if count < 1 or frames < 1:
        raise ValueError(f"choosing frames takes a clip of one frame at least, got {frames} of {count}")
    if count < frames:
        return [min(index, count - 1) for index in range(frames)]
    if not jitter:
        return [(2 * segment + 1) * count // (2 * frames) for segment in range(frames)]
    begins = [segment * count // frames for segment in range(frames + 1)]
    return [begin + int(torch.randint(end - begin, (1,))) for begin, end in pairwise(begins)]


def read_frames(path: Path, choose: Callable[[int], Sequence[int]]) -> Frames:
    """Decode a clip from its beginning up to the last frame that is chosen; only those are converted to RGB.

    Seeking in AVI files gives wrong frames or none, depending on codec and library, so there is none.

    Args:
        path: the file.
        choose: from the number of frames to the indices of those that are wanted, ascending. Where the container declares
            more frames than it has, it is asked again.

    Raises:
        ClipError: naming the clip: it is missing, no video, damaged, or has no frames.
        ImportError: without PyAV.
    """
    av = require_pyav()
    try:
        declared = _declared(av, path)
        count = declared or _decode(av, path, [])[1]
        wanted = _chosen(path, choose, count)
        images, found = _decode(av, path, wanted)
        if len(images) < len(set(wanted)):
            count = found
            wanted = _chosen(path, choose, count)
            images, _ = _decode(av, path, wanted)
        return Frames(np.stack([images[index] for index in wanted]), count, declared)
    except ClipError:
        raise
    except Exception as error:  # FFmpeg's errors are of many types
        raise ClipError(f"clip {path} cannot be decoded ({type(error).__name__}: {error})") from error


def _chosen(path: Path, choose: Callable[[int], Sequence[int]], count: int) -> Sequence[int]:
    if count < 1:
        raise ClipError(f"clip {path} has no frames")
    return choose(count)


def _declared(av: Any, path: Path) -> int:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ClipError(f"clip {path} has no video stream")
        return int(container.streams.video[0].frames)


def _decode(av: Any, path: Path, wanted: Sequence[int]) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """The wanted frames by index, and how many were decoded: all of the clip's, if one that is wanted is not there."""
    images: dict[int, NDArray[np.uint8]] = {}
    last = wanted[-1] if wanted else None
    kept, count = set(wanted), 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # a dataloader has processes of its own
        for frame in container.decode(stream):
            if count in kept:
                images[count] = frame.to_ndarray(format="rgb24")
            count += 1
            if count - 1 == last:
                break
    return images, count


def write_clip(path: Path, frames: NDArray[np.uint8], fps: int = 30, codec: str = "mpeg4") -> None:
    """Write frames (T, H, W, 3), uint8, as a clip without sound.

    Args:
        codec: FFmpeg's name; ``"ffv1"`` loses nothing.

    Raises:
        ImportError: without PyAV.
    """
    av = require_pyav()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def require_pyav() -> Any:
    """PyAV's module.

    Raises:
        ImportError: without PyAV, saying how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("clips are read with PyAV: pip install 'revbifpn[video]'") from error
    return av
