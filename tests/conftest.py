"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

# The tensors here are small: more threads than this spend their time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_settings() -> Iterator[None]:
    """MMEngine's Runner switches deterministic algorithms on, and our tools set variables: not for the tests after."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with mock.patch.dict(os.environ):
        yield
    torch.use_deterministic_algorithms(deterministic)
