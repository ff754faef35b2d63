"""Files of weights: whether they are what was written, and reading them without running what they say."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revbifpn.models.checkpoints.compact import unpack
from revbifpn.models.checkpoints.errors import CheckpointError

_ARCHIVE = b"PK\x03\x04"  # how torch.save has begun its files since torch 1.6
_PICKLE = b"\x80"  # and how before


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a whole file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_integrity(path: str | Path) -> None:
    """Check that a checkpoint's file is there, that it is one by its form, and that it is as it was written.

    ``torch.save`` writes a zip archive with a checksum for each record; ``torch.load`` does not look at the checksums, so
    a flipped bit would load as a wrong weight.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it has the form of no checkpoint, is truncated, a record does not match its checksum, or the
            records are larger than the file, as they may be if they are compressed, which ``torch.save`` never does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    if path.suffix == ".safetensors":
        _check_safetensors(path)
        return
    with path.open("rb") as file:
        beginning = file.read(16)
    if beginning.startswith(_ARCHIVE):
        _check_archive(path)
    elif not beginning.startswith(_PICKLE):  # a truncated pickle is found by reading it
        raise CheckpointError(
            f"{path} is no checkpoint: it begins with {beginning!r}; expected a .safetensors file, or one saved by torch.save"
        )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
            if packed or sum(record.file_size for record in records) > path.stat().st_size:
                raise zipfile.BadZipFile("its records are compressed or overlap, those of torch.save do neither")
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory leads zipfile to all sorts of them
        raise CheckpointError(
            f"{path} is damaged: {error}; it may be truncated, by a disk that ran full for example"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: record {damaged!r} does not match its checksum")


def _check_safetensors(path: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(f"{path} needs the safetensors package: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt"):  # compares the file's size with what its header announces
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file, or a damaged or truncated one: {error}") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checked ``.safetensors`` file as they are in it, and the file's metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  (it is no dict)


class _Skipped:
    """Stands for what a training script saved beside the weights: it takes any arguments and state, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
#: What timm's and MMEngine's training scripts save beside the weights: arguments, and histories of numbers in numpy's arrays
#: (``getattr`` is how those histories name their own methods).
_BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *_NUMPY,
)


def read_file(path: Path) -> Any:
    """Return what a checkpoint's file holds, with tensors on the CPU; compact ones (:mod:`.compact`) are made dense.

    Nothing is unpickled freely (``weights_only=True``): tensors and plain containers are built. Objects that training scripts
    of timm and MMEngine save beside them are skipped, so neither package is needed; any other object is refused.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`check_integrity`; and if the file would build anything else.
    """
    check_integrity(path)
    if path.suffix == ".safetensors":
        return unpack(*read_safetensors(path), path)
    try:
        with torch.serialization.safe_globals([(_Skipped, name) for name in _BESIDE_WEIGHTS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is no checkpoint that can be read safely: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """torch's message in one line, without its advice to unpickle the file all the same."""
    message = str(error)
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", message):
        return f"it holds more than weights, an object of {found[1]!r}, and such objects are not built (weights_only=True)"
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}; the file may be truncated, damaged, or hold other objects than tensors"
