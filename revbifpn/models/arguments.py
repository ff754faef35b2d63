"""Checks of models' arguments: each error names the argument, its range and what was given."""

from __future__ import annotations

from numbers import Integral, Real


def check_rate(name: str, rate: float) -> float:
    """Check a probability with which something is dropped; with 1 nothing would be left.

    Raises:
        ValueError: unless ``0 <= rate < 1``.
    """
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise ValueError(f"{name} must be a number with 0 <= {name} < 1, got {rate!r}")
    return rate


def check_count(name: str, count: int, least: int) -> int:
    """Check a number of things.

    Raises:
        ValueError: unless it is an integer of at least ``least``.
    """
    if not isinstance(count, Integral) or count < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {count!r}")
    return count
