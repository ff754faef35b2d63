"""What fits into a memory: the search, and its answers on a real model."""

from __future__ import annotations

import random

import pytest

from revbifpn.memory.fit import IMAGE_STEP, largest, largest_batch, largest_image
from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.memory.subject import SubjectError
from revbifpn.reversible.units import parse_bytes

TINY = "tests.memory.conftest:make_tiny"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24 GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5 GB", 15 * 10**8),
        ("800 mb", 8 * 10**8),
        ("512", 512),
        ("2 KiB", 2048),
    ],
)
def test_sizes_of_memory(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "24 GiB!", "-3 GB", "0", "1e9", "24 XB"])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="size of memory"):
        parse_bytes(text)


def test_the_search_finds_the_last_that_fits_in_few_steps() -> None:
    """On curves like real ones: a constant, a slope, a kink where the peak moves, steps of a few bytes."""
    rng = random.Random(0)
    for _ in range(300):
        power = rng.choice([1, 2])
        start, slope = rng.randrange(10**6), rng.randrange(1, 10**5)
        kink, extra, step = rng.randrange(1, 400), rng.randrange(10**5), rng.randrange(1, 1000)
        asked: list[int] = []

        def peak(n: int) -> int:
            asked.append(n)  # noqa: B023
            return start + slope * n**power + max(0, n - kink) * extra + n % step  # noqa: B023

        memory = peak(rng.randrange(1, 5000))
        asked.clear()
        found = largest(peak, memory, 1, 10**6, power)
        assert found is not None
        n, nbytes = found
        count = len(set(asked))
        assert nbytes == peak(n) <= memory < peak(n + 1)
        assert count <= 40


def test_the_search_ends_at_its_limit_and_says_when_nothing_fits() -> None:
    assert largest(lambda n: 1, 10, 1, 64) == (64, 1)
    assert largest(lambda n: 100, 10, 1, 64) is None
    assert largest(lambda n: 10 * n, 10, 1, 64) == (1, 10)


def test_a_batch_that_fits_and_the_next_that_does_not() -> None:
    subject, settings = find_subject(TINY), Settings()
    memory = 20_000_000
    for mode in ("reversible", "stored"):
        fit = largest_batch(subject, mode, (64, 64), memory, settings)
        assert fit.peak == profile_subject(subject, mode, fit.batch, (64, 64), settings).peak <= memory
        assert profile_subject(subject, mode, fit.batch + 1, (64, 64), settings).peak > memory
        image = largest_image(subject, mode, 4, memory, settings)
        side = image.image[0] + IMAGE_STEP
        assert image.image[0] == image.image[1]
        assert image.peak <= memory < profile_subject(subject, mode, 4, (side, side), settings).peak


def test_reversible_mode_fits_more() -> None:
    subject, settings = find_subject(TINY), Settings()
    batches = [largest_batch(subject, mode, (64, 64), 20_000_000, settings).batch for mode in ("reversible", "stored")]
    assert batches[0] > batches[1]


def test_what_does_not_fit_at_all_says_what_it_would_take() -> None:
    subject, settings = find_subject(TINY), Settings()
    least = profile_subject(subject, "reversible", 1, (64, 64), settings).peak
    with pytest.raises(SubjectError, match=r"does not fit into 1 kB: a step with batch 1 at 64x64 takes at least") as error:
        largest_batch(subject, "reversible", (64, 64), 1000, settings)
    assert f"{least / 1000:.3g} kB" in str(error.value)
    with pytest.raises(SubjectError, match="batch 7 at 64x64 takes at least"):
        largest_image(subject, "reversible", 7, 1000, settings)
