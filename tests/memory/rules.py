"""Where the profiler knows what oneDNN's operators take inside."""

from __future__ import annotations

import pytest
import torch

INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()
AVX512 = "AVX512" in INSTRUCTIONS

has_rules = pytest.mark.skipif(
    not AVX512 and INSTRUCTIONS != "AVX2",
    reason=f"the rules were read with AVX-512 and AVX2; this processor has {INSTRUCTIONS}",
)
