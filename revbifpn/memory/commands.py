"""What command lines that profile models have in common: the options of a step, progress, and errors in one line."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from revbifpn.memory.compare import Progress
from revbifpn.memory.fake import UnsupportedOperatorError
from revbifpn.memory.modes import KNOWN, is_mode
from revbifpn.memory.steps import Settings
from revbifpn.memory.subject import Size

_PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_step_options(
    parser: argparse.ArgumentParser, defaults: str = "the config's, or 16", device: str = "cuda if there"
) -> None:
    """Add the options that :func:`settings_of` reads, and ``--batch``, ``--image-size`` and ``--mode``.

    Args:
        defaults: says in the help what ``--batch`` is by default.
        device: says in the help what ``--device`` is by default.
    """
    step = parser.add_argument_group("the training step")
    step.add_argument("--batch", type=positive, help=f"samples (default: {defaults})")
    step.add_argument("--image-size", type=_image_size, metavar="SIDE|HxW", help="default: the model's own")
    step.add_argument(
        "--mode", action="append", type=_mode, help=f"keep to this mode, of {', '.join(KNOWN)}; may be given several times"
    )
    step.add_argument(
        "--optimizer", default="auto", help="one of timm's, such as adamw or lamb; none; default: the config's, or sgd"
    )
    step.add_argument("--precision", choices=tuple(_PRECISIONS), default="float32", help="dtype of autocast")
    step.add_argument("--channels-last", action="store_true", help="images and weights in channels_last")
    step.add_argument("--device", choices=("cpu", "cuda"), help=f"what to predict for, or measure on (default: {device})")
    step.add_argument("--measure", action="store_true", help="run the step for real and read the allocator's figures")
    step.add_argument(
        "--snapshot", type=Path, metavar="FILE", help="the CUDA allocator's record of a measured step, for PyTorch's viewer"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


def settings_of(args: argparse.Namespace, device: str) -> Settings:
    """Return what the options of a step say.

    Args:
        device: taken if ``--device`` was not given.
    """
    return Settings(
        optimizer=None if args.optimizer == "none" else args.optimizer,
        device=args.device or device,
        method="measure" if args.measure else "predict",
        autocast=_PRECISIONS[args.precision],
        channels_last=args.channels_last,
        snapshot=args.snapshot,
    )


@contextmanager
def working() -> Iterator[Progress]:
    """A line on stderr that says what is going on; warnings of libraries stay out of it."""
    from rich.console import Console

    with warnings.catch_warnings(), Console(stderr=True).status("starting") as status:
        warnings.simplefilter("ignore")
        yield lambda text: status.update(text)


def run_command(name: str, work: Callable[[], None], debug: bool) -> int:
    """Do a command's work, with an error that the user can mend in one line.

    Args:
        name: of the command, for the message.
        debug: whether an error's traceback is shown too.

    Returns:
        The exit code: 0, or 2 after an error.
    """
    try:
        import rich  # noqa: F401
    except ImportError:
        print(f"{name}: this needs rich: pip install 'revbifpn[memory]'", file=sys.stderr)
        return 2
    try:
        work()
    except (UnsupportedOperatorError, ValueError, ImportError, OSError) as error:  # a SubjectError is a ValueError
        if debug:
            traceback.print_exc()
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def _mode(text: str) -> str:
    if not is_mode(text):
        raise argparse.ArgumentTypeError(f"unknown mode {text!r}: choose from {', '.join(KNOWN)}")
    return text


def positive(text: str) -> int:
    """A whole number of 1 at least, as argparse reads it."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 at least, got {text!r}")
    return int(text)


def _image_size(text: str) -> Size:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be a side or HEIGHTxWIDTH in pixels, such as 224 or 800x1344, got {text!r}")
    return int(parts[0]), int(parts[-1])
