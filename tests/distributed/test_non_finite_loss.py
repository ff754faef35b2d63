"""A loss that is NaN or infinite in one of two processes: both leave the same batches out, and keep the same weights."""

from __future__ import annotations

import pytest

from ._non_finite_loss import BAD_STEPS
from ._processes import Launch


@pytest.mark.parametrize("case", BAD_STEPS)
def test_processes_keep_the_same_weights(launch: Launch, case: str) -> None:
    launch("non_finite_loss.both_keep_the_same_weights", bad=case)


def test_average_of_parameters_that_are_not_used_everywhere(launch: Launch) -> None:
    launch("non_finite_loss.average_of_parameters_not_used_everywhere")


def test_a_pyramid_leaves_the_step_out_or_stops(launch: Launch) -> None:
    launch("non_finite_loss.a_pyramid_leaves_the_step_out")
