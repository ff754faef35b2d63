"""Loading weights into a model: the one way that all callers take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from revbifpn.models.checkpoints.fitting import Fitted, fit
from revbifpn.models.checkpoints.reading import Checkpoint, read

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What was loaded, and what was not; ``str()`` says it in one line."""

    checkpoint: Checkpoint
    fitted: Fitted

    def __str__(self) -> str:
        def parts(keys: Sequence[str]) -> str:
            return f"{len(keys)} ({', '.join(sorted({key.split('.')[0] for key in keys}))})"

        taken = f"loaded {len(self.fitted) - len(self.fitted.kept)} tensors from {self.checkpoint.source}"
        notes = [
            f" ({self.checkpoint.choice})" if self.checkpoint.choice else "",
            f"; {self.fitted.adapted}" if self.fitted.adapted else "",
            f"; left out {parts(self.fitted.left_out)}" if self.fitted.left_out else "",
            f"; the model keeps its own {parts(self.fitted.kept)}" if self.fitted.kept else "",
        ]
        return taken + "".join(notes)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    prefix: str = "",
    ema: bool = True,
    sha256: str | None = None,
    ignore: Sequence[str] = (),
    classifier: Sequence[str] = (),
    remake_classifier: bool = False,
    allow_non_finite: bool = False,
) -> Loaded:
    """Read a checkpoint, fit it to ``model`` and load it. Nothing is loaded unless everything fits.

    Args:
        prefix, ema, sha256: see :func:`.read`.
        ignore, classifier, remake_classifier, allow_non_finite: see :func:`.fit`.

    Raises:
        FileNotFoundError, CheckpointError: see the same two.
    """
    checkpoint = read(source, prefix=prefix, ema=ema, sha256=sha256)
    fitted = fit(
        checkpoint.state_dict,
        model,
        checkpoint.source,
        ignore=ignore,
        classifier=classifier,
        remake_classifier=remake_classifier,
        allow_non_finite=allow_non_finite,
    )
    model.load_state_dict(fitted)
    return Loaded(checkpoint, fitted)


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    ignore: Sequence[str] = (),
    *,
    ema: bool = True,
    sha256: str | None = None,
    allow_non_finite: bool = False,
) -> list[str]:
    """Load a checkpoint into a RevBiFPN model. Nothing is loaded unless everything fits.

    The stem is adapted to the model's image channels. What was taken is logged (``logging``, level INFO).

    Args:
        model: a :class:`.RevBiFPN`, or a :class:`.RevBiFPNPyramid` with ``ignore=("head.",)``.
        path: a file in the published or this project's key layout, or the address of one. It may be a ``.safetensors`` file
            or one of ``torch.save``, a state dict or what a training script of timm, torchvision or MMEngine saved.
        ignore: prefixes of keys that may be left out.
        ema: where the file has weights and their exponential moving average: True takes the average, as timm does, False
            the raw weights.
        sha256: of the whole file; another file is refused. Addresses of the published files have theirs.
        allow_non_finite: take weights that are NaN or infinite too.

    Returns:
        The keys that were left out.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no checkpoint that can be read safely, is damaged, of another model, or has weights that are
            not finite.
    """
    loaded = load_weights(model, path, ignore=ignore, ema=ema, sha256=sha256, allow_non_finite=allow_non_finite)
    _logger.info("%s", loaded)
    return list(loaded.fitted.left_out)
