"""Top-k accuracy against torch's topk, ties, repeated and missing images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from revbifpn.training.classification import DataError, TopKAccuracy
from revbifpn.training.classification.metric import rank_of_label


def make_batch(size: int = 50, classes: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, classes, generator=generator)
    return {"logits": logits, "labels": torch.randint(classes, (size,), generator=generator), "indices": torch.arange(size)}


def rows(batch: dict[str, torch.Tensor], chosen: list[int]) -> dict[str, torch.Tensor]:
    return {key: value[chosen] for key, value in batch.items()}


def test_equals_topk() -> None:
    batch = make_batch()
    metric = TopKAccuracy((1, 3, 5))
    metric.process(None, [rows(batch, list(range(20)))])
    metric.process(None, [rows(batch, list(range(20, 50)))])
    metrics = metric.evaluate(50)
    for k in (1, 3, 5):
        hits = (batch["logits"].topk(k).indices == batch["labels"][:, None]).any(1)
        assert metrics[f"accuracy/top{k}"] == pytest.approx(100 * hits.float().mean().item())
    assert metrics["accuracy/loss"] == pytest.approx(F.cross_entropy(batch["logits"], batch["labels"]).item(), rel=1e-6)
    assert metrics["accuracy/images"] == 50
    assert metric.results == []  # ready for the next epoch


def test_order_and_repetition_do_not_matter() -> None:
    batch = make_batch()
    metrics = []
    for order in (list(range(50)), [*range(49, -1, -1), 3, 3, 7]):
        metric = TopKAccuracy()
        metric.process(None, [rows(batch, order)])
        metrics.append(metric.evaluate(50))
    assert metrics[0] == metrics[1]  # the loss too, to the last bit


def test_missing_images_are_an_error() -> None:
    metric = TopKAccuracy()
    metric.process(None, [rows(make_batch(), list(range(49)))])
    with pytest.raises(DataError, match="validation covered 49 of 50 images"):
        metric.evaluate(50)


def test_images_that_could_not_be_decoded_do_not_count() -> None:
    batch = make_batch()
    batch["labels"][:10] = -1
    metric, rest = TopKAccuracy(), TopKAccuracy()
    metric.process(None, [batch])
    rest.process(None, [rows(batch, list(range(10, 50)))])
    left = {f"accuracy/{k}": v for k, v in rest.compute_metrics(rest.results).items()}
    assert metric.evaluate(50) == left
    metric.process(None, [rows(batch, list(range(10)))])
    with pytest.raises(DataError, match="no image that could be decoded"):
        metric.evaluate(10)


def test_a_model_that_says_nothing_scores_nothing() -> None:
    labels = torch.tensor([0, 1, 2])
    assert rank_of_label(torch.zeros(3, 3), labels).tolist() == [0, 1, 2]
    assert rank_of_label(torch.full((3, 3), float("nan")), labels).tolist() == [3, 3, 3]
    assert rank_of_label(torch.tensor([[1.0, float("inf"), 0.0]] * 3), labels).tolist() == [1, 0, 2]
