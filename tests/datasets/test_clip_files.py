"""Which frames are chosen, and that exactly those are decoded."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revbifpn.datasets import clip_files
from revbifpn.datasets.clip_files import ClipError, read_frames, segment_indices, write_clip


def times(frames: int, size: int = 16) -> np.ndarray[Any, Any]:
    """Frames that show their number as grey, 8 a step."""
    return np.full((frames, size, size, 3), 0, np.uint8) + 8 * np.arange(frames, dtype=np.uint8)[:, None, None, None]


def test_the_middle_of_each_segment_in_evaluation() -> None:
    assert segment_indices(300, 4, jitter=False) == [37, 112, 187, 262]
    assert segment_indices(5, 5, jitter=False) == [0, 1, 2, 3, 4]
    assert segment_indices(7, 1, jitter=False) == [3]


def test_a_random_frame_of_each_segment_in_training() -> None:
    torch.manual_seed(0)
    drawn = torch.tensor([segment_indices(10, 3, jitter=True) for _ in range(200)])
    for column, segment in zip(drawn.T, ({0, 1, 2}, {3, 4, 5}, {6, 7, 8, 9}), strict=True):
        assert set(column.tolist()) == segment


@pytest.mark.parametrize("jitter", [False, True])
def test_a_clip_shorter_than_asked_for_repeats_its_last_frame(jitter: bool) -> None:
    assert segment_indices(3, 5, jitter) == [0, 1, 2, 2, 2]


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="one frame at least, got 4 of 0"):
        segment_indices(0, 4, jitter=False)


@pytest.mark.parametrize(("codec", "tolerance"), [("ffv1", 0), ("mpeg4", 4), ("mjpeg", 4)])
def test_frames_are_the_ones_that_were_asked_for(codec: str, tolerance: int, tmp_path: Path) -> None:
    """Codecs between frames and within; the lossy ones to a few levels of grey, where frames are 8 apart."""
    av = pytest.importorskip("av")
    if codec == "mjpeg":  # it wants another pixel format
        with av.open(str(tmp_path / "clip.avi"), "w") as container:
            stream = container.add_stream("mjpeg", rate=30)
            stream.height = stream.width = 16
            stream.pix_fmt = "yuvj420p"
            for image in times(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    else:
        write_clip(tmp_path / "clip.avi", times(20), codec=codec)
    images, count, declared = read_frames(tmp_path / "clip.avi", lambda count: [0, 7, 7, count - 1])
    assert (images.shape, count, declared) == ((4, 16, 16, 3), 20, 20)
    assert np.abs(images.astype(int) - times(20)[[0, 7, 7, 19]].astype(int)).max() <= tolerance


def test_a_container_that_declares_more_frames_than_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames are chosen once more, of those that are there."""
    path = tmp_path / "clip.avi"
    write_clip(path, times(10), codec="ffv1")
    for declared in (30, 0):  # 0: it does not say
        monkeypatch.setattr(clip_files, "_declared", lambda *_, declared=declared: declared)
        images, count, found = read_frames(path, lambda count: segment_indices(count, 5, jitter=False))
        assert (count, found) == (10, declared)
        assert np.array_equal(images, times(10)[[1, 3, 5, 7, 9]])


def test_a_truncated_clip_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write_clip(path, np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8), codec="ffv1")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match=r"clip\.avi cannot be decoded \(InvalidDataError"):
        read_frames(path, lambda count: segment_indices(count, 4, jitter=False))


def test_what_is_no_clip_is_named(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    choose = lambda count: [0]  # noqa: E731
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(ClipError, match=r"text\.avi cannot be decoded \(InvalidDataError"):
        read_frames(tmp_path / "text.avi", choose)
    with pytest.raises(ClipError, match=r"none\.avi cannot be decoded \(FileNotFoundError"):
        read_frames(tmp_path / "none.avi", choose)
    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height = stream.width = 16
        stream.pix_fmt = "bgr0"
        container.start_encoding()
    with pytest.raises(ClipError, match=r"empty\.avi has no frames"):
        read_frames(tmp_path / "empty.avi", choose)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ClipError, match=r"sound\.wav has no video stream"):
        read_frames(tmp_path / "sound.wav", choose)


def test_without_pyav_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'revbifpn\[video\]'"):
        read_frames(tmp_path / "clip.avi", lambda count: [0])
