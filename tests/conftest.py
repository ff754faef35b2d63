"""Settings for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# The tensors here are small: more threads than this spend their time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_settings() -> Iterator[None]:
    """MMEngine's Runner switches deterministic algorithms on: not for the tests after."""
    # The environment is left alone: replacing it while native threads read theirs crashes the process.
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
