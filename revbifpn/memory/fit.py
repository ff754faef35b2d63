"""The largest batch, and the largest image, whose training step fits into a given memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import Size, Subject, SubjectError
from revbifpn.reversible.units import format_bytes

#: Larger batches than this are not looked for.
MAX_BATCH = 1 << 20
#: Image sides are tried in multiples of this many pixels.
IMAGE_STEP = 32
#: The largest side that is tried, in steps.
MAX_STEPS = 512


@dataclass(frozen=True)
class Fit:
    """What fits.

    Attributes:
        batch, image: the largest step.
        peak: its bytes.
        searched: ``"batch"`` or ``"image"``; the other was given.
        limited: the search ended at its own limit, not at the memory's.
    """

    name: str
    mode: str
    searched: str
    batch: int
    image: Size
    peak: int
    limited: bool = False


def largest_batch(subject: Subject, mode: str, image: Size, memory: int, settings: Settings) -> Fit:
    """The largest batch of images of one size that fits into ``memory`` bytes.

    Raises:
        SubjectError: if not even one image fits; it says how much that takes.
    """

    def peak(batch: int) -> int:
        return profile_subject(subject, mode, batch, image, settings).peak

    found = largest(peak, memory, 1, MAX_BATCH)
    if found is None:
        raise SubjectError(_does_not_fit(subject, mode, 1, image, peak(1), memory))
    batch, nbytes = found
    return Fit(subject.name, mode, "batch", batch, image, nbytes, batch == MAX_BATCH)


def largest_image(subject: Subject, mode: str, batch: int, memory: int, settings: Settings) -> Fit:
    """The largest image of a batch that fits, in steps of 32 pixels, in the proportions of the model's own image.

    Raises:
        SubjectError: if not even the smallest image fits, or the model takes one size only.
    """
    if subject.fixed_size:
        raise SubjectError(f"{subject.name} is made for one image size; --fit can look for a batch only")
    height, width = subject.image

    def size(steps: int) -> Size:
        side = steps * IMAGE_STEP
        short = max(1, round(side * min(height, width) / max(height, width) / IMAGE_STEP)) * IMAGE_STEP
        return (short, side) if width > height else (side, short)

    def peak(steps: int) -> int:
        return profile_subject(subject, mode, batch, size(steps), settings).peak

    # Norms refuse to train on a single value a channel, which one image of the coarsest stride's size gives them.
    smallest = 2
    found = largest(peak, memory, smallest, MAX_STEPS, power=2)
    if found is None:
        raise SubjectError(_does_not_fit(subject, mode, batch, size(smallest), peak(smallest), memory))
    steps, nbytes = found
    return Fit(subject.name, mode, "image", batch, size(steps), nbytes, steps == MAX_STEPS)


def largest(peak: Callable[[int], int], memory: int, smallest: int, limit: int, power: int = 1) -> tuple[int, int] | None:
    """The largest n in ``smallest..limit`` with ``peak(n) <= memory``, and its peak; None if there is none.

    ``peak`` grows about like ``a + b * n**power``: each guess lies on that curve through the last two points, between the
    largest n known to fit and the smallest known not to. The result is proven by its neighbour: n fits, n + 1 does not.
    """
    fits = (smallest, peak(smallest))
    if fits[1] > memory:
        return None
    too_large: tuple[int, int] | None = None
    last = fits
    guess = min(smallest * 2 + 1, limit)
    while guess != fits[0]:
        now = (guess, peak(guess))
        if now[1] <= memory:
            fits = now
        else:
            too_large = now
        slope = max((now[1] - last[1]) / (now[0] ** power - last[0] ** power), 1e-9)
        estimate = max(now[0] ** power + (memory - now[1]) / slope, smallest) ** (1 / power)
        last = now
        upper = too_large[0] - 1 if too_large else limit
        guess = min(max(int(min(estimate, limit)), fits[0] + 1), upper) if upper > fits[0] else fits[0]
    return fits


def _does_not_fit(subject: Subject, mode: str, batch: int, image: Size, peak: int, memory: int) -> str:
    return (
        f"{subject.name} ({mode}) does not fit into {format_bytes(memory)}: "
        f"a step with batch {batch} at {image[0]}x{image[1]} takes at least {format_bytes(peak)}"
    )
