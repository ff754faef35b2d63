"""Checkpoints: the one path from a file's name or address to a model that holds its weights.

1. :mod:`.fetching` finds the file, or downloads it; where a sha256 is known it is checked.
2. :mod:`.files` checks that it is whole and reads it without running what it says.
3. :mod:`.reading` takes one set of weights out of it: the averaged ones, if there are two.
4. :mod:`.layout` converts the published key layout.
5. :mod:`.fitting` adapts the stem, drops what may be left out, and checks keys, shapes and values.
6. :mod:`.loading` does all of it for a model.

timm, the MMDetection backbone, the classification training and :func:`load_checkpoint` are callers of it.
"""

from revbifpn.models.checkpoints.errors import CheckpointError
from revbifpn.models.checkpoints.fetching import fetch, fetch_published, locate
from revbifpn.models.checkpoints.files import check_integrity, sha256_of
from revbifpn.models.checkpoints.fitting import Fitted, check_state_dict, fit
from revbifpn.models.checkpoints.layout import convert_checkpoint, find_variant, is_published_layout
from revbifpn.models.checkpoints.loading import Loaded, load_checkpoint, load_weights
from revbifpn.models.checkpoints.reading import Checkpoint, read, read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Fitted",
    "Loaded",
    "check_integrity",
    "check_state_dict",
    "convert_checkpoint",
    "fetch",
    "fetch_published",
    "find_variant",
    "fit",
    "is_published_layout",
    "load_checkpoint",
    "load_weights",
    "locate",
    "read",
    "read_checkpoint",
    "sha256_of",
]
