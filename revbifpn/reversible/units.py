"""Sizes of memory, as people write and read them."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str) -> int:
    """``"24 GiB"``, ``"800MB"``, ``"1.5 GB"`` -> bytes.

    Raises:
        ValueError: if it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?i?[bB]?)\s*", text)
    if match is None or (unit := match[2].lower()) not in _UNITS:
        raise ValueError(f"not a size of memory: {text!r}; write for example '24 GiB' or '800 MB'")
    size = int(float(match[1]) * _UNITS[unit])
    if size <= 0:
        raise ValueError(f"a size of memory must be positive, got {text!r}")
    return size


def format_bytes(nbytes: float) -> str:
    """``1536000`` -> ``"1.54 MB"``; decimal units, three significant digits."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
