"""Votes of several annotators become labels: hard ones, class probabilities to train on, and how far to trust whom.

:func:`.read_votes` reads and checks a CSV, :func:`.aggregate` runs one of :data:`.METHODS` on it. Those are crowd-kit's, and
:class:`.KRBM`, which has crowd-kit's interface. Nothing else in ``revbifpn`` imports this package.
"""

try:
    import crowdkit.aggregation  # noqa: F401
    import pandas  # noqa: F401
except ImportError as error:
    raise ImportError(f"vote aggregation needs crowd-kit and pandas ({error}): pip install 'revbifpn[votes]'") from error

from revbifpn.votes.aggregation import Aggregation, aggregate
from revbifpn.votes.krbm import KRBM
from revbifpn.votes.methods import METHODS
from revbifpn.votes.table import VoteError, VoteTable, read_gold, read_votes

__all__ = ["KRBM", "METHODS", "Aggregation", "VoteError", "VoteTable", "aggregate", "read_gold", "read_votes"]
