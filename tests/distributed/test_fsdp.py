"""FSDP2 over two gloo processes; what each test promises is the docstring of its case in ``_fsdp.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ._processes import Launch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_equals_one_process(launch: Launch, optimizer: str) -> None:
    launch("fsdp.training", optimizer=optimizer)


def test_exact_mode(launch: Launch) -> None:
    launch("fsdp.training", optimizer="sgd", exact=True)


@pytest.mark.parametrize(("reduce_float32", "frozen"), [(True, 0), (False, 3)])
def test_mixed_precision_equals_stored_mode(launch: Launch, reduce_float32: bool, frozen: int) -> None:
    launch("fsdp.mixed_precision", reduce_float32=reduce_float32, frozen=frozen)


def test_checkpoint_goes_on_bit_for_bit(launch: Launch, tmp_path: Path) -> None:
    launch("fsdp.checkpoint_of_shards", folder=str(tmp_path / "checkpoint"))


def test_sharding_recomputed_modules_is_refused(launch: Launch) -> None:
    launch("fsdp.of_recomputed_modules")
