"""Top-k accuracy over all processes, each validation image counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmengine.dist as dist
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.classification.data import SKIPPED

Result = tuple[int, int, float]  # index, rank of the true class (0 is best), cross entropy


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Percentage of images whose true class is among the k best, and the mean cross entropy.

    Processes may have different numbers of images. An image that a sampler repeated counts once. Ties go to the lower class
    number, and logits that are no numbers count as wrong, so that a model that predicts nothing scores nothing.

    Args:
        topk: the numbers k.
        prefix: of the results' names.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1, 5), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep index, rank and loss of each image of a batch (what :class:`.ImageClassifier` predicts)."""
        for batch in data_samples:
            labels, indices = batch["labels"], batch["indices"]
            known = labels.clamp(min=0)
            logits = batch["logits"].float()
            ranks = rank_of_label(logits, known).masked_fill(labels == SKIPPED, -1)
            losses = F.cross_entropy(logits, known, reduction="none")
            self.results.extend(zip(indices.tolist(), ranks.tolist(), losses.tolist(), strict=True))

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the metrics over all processes.

        Args:
            size: number of images in the data set.

        Raises:
            DataError: if images of an indexed data set are missing.
        """
        parts: list[list[Result]] = dist.all_gather_object(self.results)
        results = [result for part in parts for result in part]
        self.results.clear()
        indexed = [result for result in results if result[0] >= 0]
        unique = {index: (index, rank, loss) for index, rank, loss in indexed}
        if indexed and len(unique) != size:
            raise DataError(f"validation covered {len(unique)} of {size} images: look at val_dataloader's sampler")
        metrics = self.compute_metrics(list(unique.values()) if indexed else results)
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def compute_metrics(self, results: list[Result]) -> dict[str, float]:
        """Percentages and mean loss of results that hold each image once."""
        counted = [result for result in results if result[1] >= 0]
        if not counted:
            raise DataError("validation found no image that could be decoded")
        if skipped := len(results) - len(counted):
            print_log(f"{skipped} of {len(results)} images could not be decoded and do not count", "current", 30)
        metrics = {f"top{k}": 100 * sum(rank < k for _, rank, _ in counted) / len(counted) for k in self.topk}
        # Sorted: the sum must not depend on how the images were shared out.
        metrics["loss"] = sum(loss for _, _, loss in sorted(counted)) / len(counted)
        return metrics | {"images": float(len(counted))}


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, C) logits, (N,) labels -> (N,) the number of classes before the true one; C where a logit is no number."""
    true = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > true) | ((logits == true) & (classes < labels[:, None]))
    return before.sum(1).masked_fill(logits.isnan().any(1), logits.shape[1])
