"""Settings for all tests."""

from __future__ import annotations

import torch

# The tensors here are small: more threads than this spend their time waiting for each other.
torch.set_num_threads(1)
