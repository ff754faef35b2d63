"""Walking through an MMEngine config, which is nested dictionaries and lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def dictionaries_in(part: Any) -> Iterator[dict[str, Any]]:
    """Yield all dictionaries in a part of a config, the outer ones first."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from dictionaries_in(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from dictionaries_in(value)
