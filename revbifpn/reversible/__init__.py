"""The reversible engine: layers with an inverse, trained without keeping their activations. Imports torch only."""

from revbifpn.reversible.compile import compile_edges
from revbifpn.reversible.couplings import RevBlock, RevSilo, StreamWise
from revbifpn.reversible.exact import ExactReversalWarning, ReversalPrecisionWarning
from revbifpn.reversible.layers import ReversibleLayer, SpaceToDepth
from revbifpn.reversible.recompute import recompute
from revbifpn.reversible.sequential import ReversibleSequential, set_exact, set_reversible

__all__ = [
    "ExactReversalWarning",
    "RevBlock",
    "RevSilo",
    "ReversalPrecisionWarning",
    "ReversibleLayer",
    "ReversibleSequential",
    "SpaceToDepth",
    "StreamWise",
    "compile_edges",
    "recompute",
    "set_exact",
    "set_reversible",
]
