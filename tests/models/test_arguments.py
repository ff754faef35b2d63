"""Arguments out of range: each error names the argument, the range and what was given, whoever makes the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import nn

from revbifpn.models import RevBiFPN, RevBiFPNPyramid

OF_ALL = [
    ("drop_path_rate", 1.5, "a number with 0 <= drop_path_rate < 1, got 1.5"),
    ("drop_path_rate", 1, "a number with 0 <= drop_path_rate < 1, got 1"),
    ("drop_path_rate", float("nan"), "a number with 0 <= drop_path_rate < 1, got nan"),
    ("drop_path_rate", "0.1", "a number with 0 <= drop_path_rate < 1, got '0.1'"),
    ("in_chans", 0, "an integer >= 1, got 0"),
    ("in_chans", -3, "an integer >= 1, got -3"),
    ("memory_format", "nhwc", "one of 'auto', 'keep', 'channels_last', 'contiguous', got 'nhwc'"),
]
OF_CLASSIFIERS = [
    ("drop_rate", -1, "a number with 0 <= drop_rate < 1, got -1"),
    ("num_classes", -1, "an integer >= 0, got -1"),
    ("num_classes", 2.0, "an integer >= 0, got 2.0"),
]
CASES = [
    *[(partial(RevBiFPNPyramid, "s0"), *case) for case in OF_ALL],
    *[(partial(RevBiFPN, "s0"), *case) for case in OF_ALL + OF_CLASSIFIERS],
    *[(partial(timm.create_model, "revbifpn_s0"), *case) for case in OF_ALL + OF_CLASSIFIERS],
]


@pytest.mark.parametrize(("make", "argument", "value", "meant"), CASES)
def test_numbers_out_of_range_are_named_with_the_range(
    make: Callable[..., nn.Module], argument: str, value: object, meant: str
) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be {meant}$"):
        make(**{argument: value})


def test_a_classifier_cannot_be_reset_to_a_negative_number_of_classes() -> None:
    model = RevBiFPN("s0", num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be an integer >= 0, got -1"):
        model.reset_classifier(-1)
    assert model.num_classes == model.head.fc.out_features == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("kind", [RevBiFPN, RevBiFPNPyramid])
def test_an_image_of_integers_is_refused_with_what_is_meant(kind: type[RevBiFPNPyramid], dtype: torch.dtype) -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=dtype)
    message = rf"RevBiFPN-s0: image must hold floating-point numbers, .* got {dtype}: .*\(image / 255 - mean\) / std"
    with pytest.raises(ValueError, match=message):
        kind("s0")(image)
