"""The error of everything that has to do with checkpoints, and how its messages name many things."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; nothing was loaded."""


def some(items: Sequence[str], most: int = 3) -> str:
    """Return the first of the items, and how many more there are."""
    return ", ".join(items[:most]) + (f", ... ({len(items) - most} more)" if len(items) > most else "")
