"""Metrics of levels against values computed by hand, and that each clip counts once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.clips import ClipMetric
from revbifpn.training.clips.metric import level_metrics
from revbifpn.training.clips.weights import class_weights


def batch(indices: list[int], true: Any, predicted: list[int]) -> dict[str, Any]:
    return dict(
        predictions={"level": torch.tensor(predicted)}, labels={"level": torch.as_tensor(true)}, indices=torch.tensor(indices)
    )


def scored(*batches: dict[str, Any], size: int, **options: Any) -> dict[str, float]:
    metric = ClipMetric({"level": 4}, **options)
    for content in batches:
        metric.process(None, [content])
    return metric.evaluate(size)


def test_by_hand() -> None:
    """Levels 0 0 1 2 answered 0 1 1 1; level 3 has no clip."""
    found = level_metrics(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4)
    observed = (1 + 0 + 1) / 4  # mean squared distance
    by_chance = np.mean([(t - p) ** 2 for t in (0, 0, 1, 2) for p in (0, 1, 1, 1)])
    assert found == pytest.approx(
        {
            "top1": 50,
            "macro_f1": (2 / 3 + 2 / 4 + 0 + 0) / 4,
            "balanced_accuracy": (1 / 2 + 1 + 0) / 3,
            "mae": 0.5,
            "kappa": 1 - observed / by_chance,
        }
    )


def test_floor_is_the_constant_answer() -> None:
    """DAiSEE's Test split, always level 2: the published floor of .4944 and a macro-F1 of .165."""
    true = np.repeat([0, 1, 2, 3], [4, 84, 882, 814])
    metrics = ClipMetric({"level": 4}, merge_lowest=True).compute_metrics(
        [(index, {"level": int(level)}, {"level": int(level)}) for index, level in enumerate(true)]
    )
    assert metrics["level/top1"] == 100
    assert metrics["level/kappa"] == metrics["level/macro_f1"] == metrics["level/macro_f1_merged"] == 1
    assert metrics["level/floor_top1"] == pytest.approx(49.44, abs=0.005)
    assert metrics["level/floor_macro_f1"] == pytest.approx(0.165, abs=0.0005)
    assert metrics["level/floor_macro_f1_merged"] == pytest.approx(0.165 * 4 / 3, abs=0.001)
    assert metrics["level/floor_kappa"] == 0
    assert metrics["mean/macro_f1"] == 1
    assert metrics["level/clips"] == 1784


def test_each_clip_counts_once_and_missing_labels_do_not() -> None:
    metrics = scored(batch([0, 1], [3, -1], [3, 0]), batch([2, 0], [1, 3], [2, 3]), size=3)
    assert metrics["level/clips"] == 2
    assert metrics["level/top1"] == 50
    with pytest.raises(DataError, match="covered 2 of 3 clips"):
        scored(batch([0, 1], [3, 1], [3, 0]), size=3)
    with pytest.raises(DataError, match="no clip with a label of level could be scored"):
        scored(batch([0], [-1], [3]), size=1)


def test_soft_labels_count_as_their_most_probable_level() -> None:
    soft = torch.tensor([[0.1, 0.2, 0.7, 0.0], [float("nan")] * 4])
    assert scored(batch([0, 1], soft, [2, 0]), size=2)["level/clips"] == 1


def test_one_level_in_truth_and_answers_has_no_kappa() -> None:
    assert level_metrics(np.array([1, 1]), np.array([1, 1]), 4)["kappa"] == 0


def test_class_weights() -> None:
    assert class_weights([10, 30, 0]) == pytest.approx([2, 2 / 3, 0])
    counts, weights = [34, 213, 2617, 2494], class_weights([34, 213, 2617, 2494], power=0.5)
    assert sum(c * w for c, w in zip(counts, weights, strict=True)) == pytest.approx(sum(counts))
    assert weights[0] / weights[2] == pytest.approx((2617 / 34) ** 0.5)
    assert class_weights([5, 1], power=0) == [1, 1]
