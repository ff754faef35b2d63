"""Faults that a user can mend: their errors, and how the command lines say them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from revbifpn.datasets.image_folders import DataError
from revbifpn.models.checkpoints import CheckpointError
from revbifpn.reversible.budget import BudgetError

USER_ERROR = 2  # exit status, as argparse's for options that it does not know


class ConfigError(ValueError):
    """A config or options that cannot be used, or do not go together."""


class NonFiniteLossError(RuntimeError):
    """The training loss was NaN or infinite."""


@contextmanager
def one_line_errors(tool: str, *others: type[Exception]) -> Iterator[None]:
    """End the program with one line on stderr and exit status 2 for what its user can mend.

    Those are files that are missing, or cannot be read or written, missing packages, and this project's own errors.
    Everything else keeps its traceback.

    Args:
        tool: what the line begins with.
        others: further errors to treat so.
    """
    own = (BudgetError, CheckpointError, DataError, ConfigError, NonFiniteLossError)
    mendable: tuple[type[Exception], ...] = (OSError, ImportError, *own, *others)
    try:
        yield
    except mendable as error:
        print(f"{tool}: {one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def one_line(error: Exception) -> str:
    """Return what an error says; of one that came out of a dataloader's worker without the worker's traceback."""
    text = str(error)
    raised = f"{type(error).__module__}.{type(error).__qualname__}: "  # as a traceback ends
    return text.rpartition(raised)[2].strip() if "Original Traceback" in text else text
