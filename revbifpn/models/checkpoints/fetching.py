"""From what a checkpoint is called, a path or an address, to a file on this machine that has the right content."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import torch

from revbifpn.models.checkpoints.errors import CheckpointError
from revbifpn.models.checkpoints.files import check_integrity, sha256_of
from revbifpn.models.published_weights import PUBLISHED, published_as, published_at

_DATE = re.compile(r"(?:19|20)\d{6}")


def locate(source: str | Path, folder: str | Path | None = None, progress: bool = False) -> Path:
    """Return the file that ``source`` names; what lies behind an address is fetched (:func:`fetch`).

    Raises:
        FileNotFoundError: if there is no such file. For a name of the published files the message says where that one is.
        CheckpointError: see :func:`fetch`.
    """
    if str(source).startswith(("http://", "https://")):
        return fetch(str(source), folder, progress)
    path = Path(source).expanduser()
    if not path.is_file():
        message = f"checkpoint not found: {path}"
        if published := published_as(path.name):
            message += f". It is published at {published.url} (sha256 {published.sha256}); that address may be named instead"
        raise FileNotFoundError(message)
    return path


def fetch(address: str, folder: str | Path | None = None, progress: bool = False) -> Path:
    """Return the file behind an address: the copy in ``folder``, or a download. Either is checked, and a wrong one is refused.

    - A published file must have its published sha256.
    - A name as torch.hub and MMDetection give them (``name-d4b0c5d6.pth``) ends in the sha256's first digits.
    - Any other file lies in a folder that is named after its whole address, so that two files of one name are not taken for
      each other. It must have a checkpoint's form; its sha256 is written beside it and holds from then on.

    A download gets its name after the check, so what bears it is whole.

    Args:
        address: begins with ``http://`` or ``https://``.
        folder: torch.hub's ``checkpoints`` if None.
        progress: show a bar on stderr.

    Raises:
        CheckpointError: if the file cannot be had or is another one. It names the address, the sha256 and the place.
    """
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    if not name:
        raise CheckpointError(f"{address} is no address of a file")
    folder = Path(torch.hub.get_dir(), "checkpoints") if folder is None else Path(folder)
    published = published_at(address)
    expected = published.sha256 if published else _sha256_in(name)
    if expected is None:
        folder /= hashlib.sha256(address.encode()).hexdigest()[:16]
    path, record = folder / name, folder / f"{name}.sha256"
    if path.is_file() and (wanted := expected or _recorded(record)):
        found = sha256_of(path)
        if not found.startswith(wanted):
            raise _refusal(address, path, wanted, f"{path} is another file or a damaged one (its sha256 is {found})")
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as unchecked:
            download = Path(unchecked, name)
            torch.hub.download_url_to_file(address, str(download), hash_prefix=expected, progress=progress)
            if expected is None:
                check_integrity(download)
                record.write_text(f"{sha256_of(download)}  {name}\n")  # what sha256sum writes and checks
            os.replace(download, path)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: torch.hub's, for another sha256
        reason = f"the download failed or arrived damaged ({type(error).__name__}: {error})"
        raise _refusal(address, path, expected, reason) from error
    return path


def fetch_published(name: str, folder: str | Path | None = None, progress: bool = False) -> Path:
    """Return the published file of a variant: the copy in ``folder``, or a download (:func:`fetch`).

    Args:
        name: ``"s0"`` to ``"s6"``.
        folder: torch.hub's ``checkpoints`` if None.
        progress: show a bar on stderr.

    Raises:
        CheckpointError: if the file cannot be had or is another one. It names the address, the sha256 and the place.
    """
    return fetch(PUBLISHED[name].url, folder, progress)


def _sha256_in(name: str) -> str | None:
    """The digits of the sha256 that a file's name ends in, at least 8 of them; eight digits that are a date are none."""
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found and not _DATE.fullmatch(found[1]) else None


def _recorded(record: Path) -> str | None:
    found = re.match(r"[0-9a-f]{64}\b", record.read_text()) if record.is_file() else None
    return found[0] if found else None


def _refusal(address: str, path: Path, expected: str | None, reason: str) -> CheckpointError:
    by_hand = (
        "Put the file there by hand, remove what lies there to have it downloaded again, or name another file instead of the "
        "address (timm: pretrained_cfg_overlay=dict(file=...))."
    )
    lines = [f"the weights cannot be had: {reason}.", f"  address:         {address}"]
    if expected is None:
        by_hand = "Download it by hand, and name the file instead of the address."
    else:
        lines.append(f"  expected sha256: {expected}" + (" ..." if len(expected) < 64 else ""))
    return CheckpointError("\n".join([*lines, f"  place:           {path}", by_hand]))
