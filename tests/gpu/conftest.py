"""These tests ask for a card: ``pytest -m gpu tests/gpu``, with torch 2.11 or newer, timm and pytest alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _deterministic_and_clean() -> Iterator[None]:
    """The same kernels in every run, float32 products in float32, and an empty cache for what measures memory."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = torch.backends.cudnn.deterministic, matmul.fp32_precision, conv.fp32_precision
    torch.backends.cudnn.deterministic, matmul.fp32_precision, conv.fp32_precision = True, "ieee", "ieee"
    yield
    torch.backends.cudnn.deterministic, matmul.fp32_precision, conv.fp32_precision = before
    torch.cuda.empty_cache()
