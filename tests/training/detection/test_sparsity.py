"""A detector's config trains sparse by one entry, as a classifier's does."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from revbifpn.sparsity import select_weights
from revbifpn.training.config import load_config
from revbifpn.training.runner import build_runner


def test_the_backbones_weights_have_their_zeros_after_steps(tiny_config: Path, tmp_path: Path) -> None:
    config = tmp_path / "sparse.py"
    config.write_text(
        f'_base_ = "{tiny_config}"\n'
        "train_cfg = dict(max_iters=3, val_interval=10)\n"
        'sparsity = dict(sparsity=0.5, method="rigl", update_every=1)\n'
    )
    cfg: Config = load_config(config, work_dir=tmp_path / "work")
    runner = build_runner(cfg)
    runner.train()
    weights = select_weights(runner.model.backbone)
    assert weights
    for name, weight in weights.items():
        assert int((weight == 0).sum()) == weight.numel() // 2, name
    state = torch.load(tmp_path / "work" / "iter_2.pth", weights_only=False)
    assert "sparsity" in state
