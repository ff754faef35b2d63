"""What a test leaves behind: metrics as JSON, and a detector's predictions in COCO's format for results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine.dist as dist

from revbifpn.models.checkpoints import locate, sha256_of


def results_folder(cfg: Any) -> Path:
    """The folder of a test's results: ``test`` in the work folder."""
    return Path(cfg.work_dir) / "test"


def keep_predictions(cfg: Any) -> None:
    """Let COCO evaluators of a config write the predictions that they evaluate, unless the config says where already.

    The files are ``predictions.bbox.json`` and, with masks, ``predictions.segm.json``.
    """
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    for evaluator in evaluators:
        if str(evaluator.get("type", "")).split(".")[-1] == "CocoMetric" and not evaluator.get("outfile_prefix"):
            results_folder(cfg).mkdir(parents=True, exist_ok=True)
            evaluator["outfile_prefix"] = str(results_folder(cfg) / "predictions")


def write_metrics(cfg: Any, checkpoint: str, metrics: Mapping[str, float]) -> Path:
    """Write ``metrics.json``: the metrics, and which checkpoint they are of. In distributed tests the first process does.

    Returns:
        The file.
    """
    path = results_folder(cfg) / "metrics.json"
    if dist.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: float(value) for name, value in metrics.items()}
        content = {
            "config": cfg.filename,
            "checkpoint": checkpoint,
            "sha256": sha256_of(locate(checkpoint)),
            "metrics": values,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
    return path
