"""The reversible engine: layers with an inverse, trained without keeping their activations. Imports torch only."""

from revbifpn.reversible.compile import compile_edges
from revbifpn.reversible.couplings import RevBlock, RevSilo, StreamWise
from revbifpn.reversible.exact import ExactReversalWarning, ReversalPrecisionWarning
from revbifpn.reversible.forms import register_lean_form
from revbifpn.reversible.layers import ReversibleLayer, SpaceToDepth
from revbifpn.reversible.lean import ConvNorm, SqueezeExcite, lean_chain
from revbifpn.reversible.readout import ReadOut
from revbifpn.reversible.recompute import recompute
from revbifpn.reversible.sequential import ReversibleSequential, set_exact, set_reversible

__all__ = [
    "ConvNorm",
    "ExactReversalWarning",
    "ReadOut",
    "RevBlock",
    "RevSilo",
    "ReversalPrecisionWarning",
    "ReversibleLayer",
    "ReversibleSequential",
    "SpaceToDepth",
    "SqueezeExcite",
    "StreamWise",
    "compile_edges",
    "lean_chain",
    "recompute",
    "register_lean_form",
    "set_exact",
    "set_reversible",
]
