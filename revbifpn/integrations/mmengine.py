"""What MMEngine's checkpoints hold beside tensors: the types that a safe reading of them may build."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np

try:
    from mmengine.logging import HistoryBuffer
except ImportError as error:
    raise ImportError(
        "this needs MMEngine: pip install 'revbifpn[train]', or for detection 'revbifpn[mmdet]' (see tools/setup.sh)"
    ) from error

_STATISTICS = ("current", "max", "mean", "min")  # methods that every HistoryBuffer names in its state
_NUMBERS = "?bhilqBHILQefd"  # numpy's codes for truth values, integers and floats: no objects, strings or records


def checkpoint_types() -> list[Any]:
    """List what ``torch.serialization.safe_globals`` has to allow so that MMEngine's checkpoints can be read safely.

    Those are the message hub's :class:`mmengine.logging.HistoryBuffer`, and numpy's arrays and scalars of numbers. MMEngine's
    own list also has ``getattr``, with which a file reaches the attributes of all that is allowed. A HistoryBuffer does ask
    for it, to find its own methods; here the name ``getattr`` stands for a function that finds those and nothing else.
    """
    functions = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64().__reduce__()[0]}
    # numpy 2 renamed its module, and a file may be of either version.
    by_name = [(f, f"numpy.{core}.multiarray.{name}") for name, f in functions.items() for core in ("core", "_core")]
    numbers = {type(np.dtype(code)) for code in _NUMBERS}
    return [HistoryBuffer, (_statistic, "builtins.getattr"), np.ndarray, np.dtype, *numbers, *by_name]


def _statistic(owner: object, name: str) -> Any:
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(f"the file asks for the attribute {name!r} of {owner!r}, which no checkpoint of MMEngine needs")
    return getattr(HistoryBuffer, name)
