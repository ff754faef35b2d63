"""RevBiFPN models S0 to S6."""

from revbifpn.models.budget import set_activation_budget
from revbifpn.models.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    fetch_published,
    load_checkpoint,
    read_checkpoint,
)
from revbifpn.models.classifier import RevBiFPN
from revbifpn.models.fuse import fuse
from revbifpn.models.published_weights import PUBLISHED, PublishedWeights
from revbifpn.models.pyramid import RevBiFPNPyramid
from revbifpn.models.variants import VARIANTS, Variant, get_variant
from revbifpn.reversible.budget import BudgetError

__all__ = [
    "PUBLISHED",
    "VARIANTS",
    "BudgetError",
    "CheckpointError",
    "PublishedWeights",
    "RevBiFPN",
    "RevBiFPNPyramid",
    "Variant",
    "convert_checkpoint",
    "fetch_published",
    "fuse",
    "get_variant",
    "load_checkpoint",
    "read_checkpoint",
    "set_activation_budget",
]
