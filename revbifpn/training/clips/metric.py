"""Metrics of ordered levels, each clip counted once, beside what a constant answer would score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmengine.dist as dist
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from numpy.typing import NDArray
from torch import Tensor

from revbifpn.datasets.clips import MISSING
from revbifpn.datasets.image_folders import DataError
from revbifpn.training.clips.data import levels_of

METRIC_NAMES = {
    "top1": "top-1, %",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "mae": "MAE",
    "kappa": "quadratic kappa",
}

#: index, true levels and predicted levels by output
Result = tuple[int, dict[str, int], dict[str, int]]


@METRICS.register_module()
class ClipMetric(BaseMetric):
    """Top-1, macro-F1, balanced accuracy, mean absolute error and quadratic kappa of each output, and their means.

    Results are named ``<output>/<metric>`` and ``mean/<metric>``; ``<output>/floor_<metric>`` is what answering always the
    level that most of the scored clips have would give. Macro-F1 and kappa are over all levels, of which some may have no
    clip; balanced accuracy is over those that have. A clip that a sampler repeated counts once; one without an output's label
    does not count there. Of soft labels the most probable level is the true one.

    Args:
        outputs: those of the model: names, and numbers of levels.
        merge_lowest: report ``macro_f1_merged`` too, for which levels 0 and 1 are one: DAiSEE's lowest engagement has four
            clips in the test split.

    Raises:
        ImportError: without scikit-learn.
    """

    default_prefix = "clips"  # MMEngine asks for one; here the outputs' names stand in its place

    def __init__(self, outputs: Mapping[str, int | Mapping[str, Any]], merge_lowest: bool = False) -> None:
        super().__init__()
        _sklearn()
        self.levels = levels_of(outputs)
        self.merge_lowest = merge_lowest

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the levels of each clip of a batch (what :class:`.ClipRecognizer` predicts)."""
        for batch in data_samples:
            true = {name: hard_labels(batch["labels"][name]).tolist() for name in self.levels}
            predicted = {name: batch["predictions"][name].tolist() for name in self.levels}
            for place, index in enumerate(batch["indices"].tolist()):
                at = ({name: values[place] for name, values in kind.items()} for kind in (true, predicted))
                self.results.append((index, *at))

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the metrics over all processes, and write them into the log as a table.

        Args:
            size: number of clips in the data set.

        Raises:
            DataError: if clips are missing, or none of an output's could be scored.
        """
        parts: list[list[Result]] = dist.all_gather_object(self.results)
        unique = {result[0]: result for part in parts for result in part}
        self.results.clear()
        if len(unique) != size:
            raise DataError(f"validation covered {len(unique)} of {size} clips: look at val_dataloader's sampler")
        return self.compute_metrics([unique[index] for index in sorted(unique)])

    def compute_metrics(self, results: list[Result]) -> dict[str, float]:
        """Metrics of results that hold each clip once."""
        if skipped := sum(all(level == MISSING for level in true.values()) for _, true, _ in results):
            print_log(f"{skipped} of {len(results)} clips could not be decoded and do not count", "current", 30)
        metrics: dict[str, float] = {}
        for name, levels in self.levels.items():
            pairs = [(true[name], predicted[name]) for _, true, predicted in results if true[name] != MISSING]
            if not pairs:
                raise DataError(f"no clip with a label of {name} could be scored")
            true, predicted = np.array(pairs).T
            majority = np.full_like(true, np.bincount(true).argmax())
            for prefix, answer in (("", predicted), ("floor_", majority)):
                found = level_metrics(true, answer, levels)
                if self.merge_lowest:
                    merged = level_metrics(np.maximum(true, 1) - 1, np.maximum(answer, 1) - 1, levels - 1)
                    found["macro_f1_merged"] = merged["macro_f1"]
                metrics |= {f"{name}/{prefix}{key}": value for key, value in found.items()}
            metrics[f"{name}/clips"] = float(len(pairs))
        for key in METRIC_NAMES:
            metrics[f"mean/{key}"] = float(np.mean([metrics[f"{name}/{key}"] for name in self.levels]))
        print_log(f"always the most common level in parentheses\n{as_table(metrics, list(self.levels))}", "current")
        return metrics


def level_metrics(true: NDArray[np.int64], predicted: NDArray[np.int64], levels: int) -> dict[str, float]:
    """The metrics of true and predicted levels, each (N,)."""
    sklearn = _sklearn()
    every = list(range(levels))
    present = np.unique(true)
    kappa = (
        float(sklearn.cohen_kappa_score(true, predicted, labels=every, weights="quadratic"))
        if _varies(true, predicted)
        else 0.0
    )
    return {
        "top1": 100 * float((true == predicted).mean()),
        "macro_f1": float(sklearn.f1_score(true, predicted, labels=every, average="macro", zero_division=0)),
        "balanced_accuracy": float(sklearn.recall_score(true, predicted, labels=present, average="macro", zero_division=0)),
        "mae": float(np.abs(true - predicted).mean()),
        "kappa": kappa,
    }


def as_table(metrics: Mapping[str, float], outputs: Sequence[str]) -> str:
    """A row for each output, with the always-majority floor in parentheses."""
    width = max(len(name) for name in outputs)
    header = "  ".join([f"{'':{width}}", f"{'clips':>6}", *(f"{title:>17}" for title in METRIC_NAMES.values())])
    rows = []
    for name in outputs:
        cells = []
        for key in METRIC_NAMES:
            digits = 1 if key == "top1" else 3
            cells.append(f"{metrics[f'{name}/{key}']:.{digits}f} ({metrics[f'{name}/floor_{key}']:.{digits}f})")
        rows.append("  ".join([f"{name:{width}}", f"{metrics[f'{name}/clips']:>6.0f}", *(f"{cell:>17}" for cell in cells)]))
    return "\n".join([header, *rows])


def hard_labels(labels: Tensor) -> Tensor:
    """(N,) levels as they are; (N, K) probabilities -> the most probable level, -1 where they are NaN."""
    if not labels.is_floating_point():
        return labels
    missing = torch.isnan(labels).any(1)
    return labels.nan_to_num().argmax(1).masked_fill(missing, MISSING)


def _varies(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> bool:
    """Whether kappa is defined: with all clips of one level and all answers that level too it is 0 / 0, here 0."""
    return len(np.unique(np.concatenate([true, predicted]))) > 1


def _sklearn() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError("metrics of clips need scikit-learn: pip install 'revbifpn[video]'") from error
    return metrics
