"""DistributedDataParallel over two gloo processes; what each test promises is the docstring of its case in ``_ddp.py``."""

from __future__ import annotations

from typing import Any

import pytest

from ._processes import Launch


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"reversible": False}], ids=["reversible", "exact", "stored"])
def test_gradients_are_those_of_one_process(launch: Launch, options: dict[str, Any]) -> None:
    launch("ddp.gradients_of_one_process", variant="s0", **options)


@pytest.mark.parametrize("option", ["static_graph", "gradient_as_bucket_view"])
def test_training_with_option(launch: Launch, option: str) -> None:
    launch("ddp.training_with_options", ddp={option: True})


@pytest.mark.parametrize(
    "options",
    [{"out_indices": [1, 2, 3]}, {"out_indices": [3]}, {"out_indices": [0, 2], "frozen_stages": 2}],
    ids=["levels-1-2-3", "level-3", "levels-0-2-frozen"],
)
def test_detection_backbone(launch: Launch, options: dict[str, Any]) -> None:
    launch("ddp.detection_backbone", **options)


def test_buckets_are_reduced_while_backward_runs(launch: Launch) -> None:
    launch("ddp.overlap")


@pytest.mark.parametrize("inside", [True, False], ids=["in-model", "in-loss"])
def test_unused_parameters(launch: Launch, inside: bool) -> None:
    launch("ddp.unused_parameters", inside=inside)


def test_gradient_accumulation(launch: Launch) -> None:
    launch("ddp.accumulation")


def test_running_statistics_move_once_a_step(launch: Launch) -> None:
    launch("ddp.running_statistics")


def test_sync_batch_norm(launch: Launch) -> None:
    launch("ddp.sync_batch_norm")


def test_uneven_batches(launch: Launch) -> None:
    launch("ddp.uneven_batches")
