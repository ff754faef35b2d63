"""RevBiFPN: a fully reversible feature pyramid backbone (Chiley et al., MLSys 2023).

Importing this package registers the timm models ``revbifpn_s0`` to ``revbifpn_s6``. The MMDetection backbone is in
:mod:`revbifpn.integrations.mmdet`, which a config names in ``custom_imports``.
"""

from revbifpn.integrations import timm as _timm  # noqa: F401  (registers the models)
from revbifpn.models import (
    BudgetError,
    CheckpointError,
    RevBiFPN,
    RevBiFPNPyramid,
    Variant,
    convert_checkpoint,
    fuse,
    load_checkpoint,
    set_activation_budget,
)
from revbifpn.reversible import (
    ExactReversalWarning,
    RevBlock,
    ReversalPrecisionWarning,
    ReversibleSequential,
    RevSilo,
    compile_edges,
    set_exact,
    set_reversible,
)

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ExactReversalWarning",
    "RevBiFPN",
    "RevBiFPNPyramid",
    "RevBlock",
    "RevSilo",
    "ReversalPrecisionWarning",
    "ReversibleSequential",
    "Variant",
    "compile_edges",
    "convert_checkpoint",
    "fuse",
    "load_checkpoint",
    "set_activation_budget",
    "set_exact",
    "set_reversible",
]
