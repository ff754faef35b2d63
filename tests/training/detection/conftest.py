"""A config for own data, and options with which it trains on a CPU in seconds."""

from __future__ import annotations

from tests.conftest import ROOT

FINETUNE = ROOT / "configs/finetune/mask-rcnn_revbifpn-s0_finetune.py"

#: On a CPU in seconds.
SMALL = (
    "--cfg-options",
    "train_cfg.max_epochs=1",
    "default_hooks.logger.interval=1",
    "model.test_cfg.rcnn.max_per_img=10",
    "train_dataloader.dataset.pipeline.2.scale=(64,64)",
    *(f"{name}_dataloader.dataset.pipeline.1.scale=(64,64)" for name in ("val", "test")),
    *(
        f"{name}_dataloader.{option}"
        for name in ("train", "val", "test")
        for option in ("num_workers=0", "persistent_workers=False", "batch_size=2")
    ),
)
