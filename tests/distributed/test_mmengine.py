"""MMEngine's distributed training over two gloo processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from revbifpn.datasets.demo_digits import DemoDataParameters, make_demo_data

from ._processes import LAUNCHER, ROOT, WORLD_SIZE, run_all

ITERATIONS = 3

PLUG_IN = """
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SameWeights(Hook):
    def before_train(self, runner):
        self.start = self.weights(runner)

    def after_train(self, runner):
        mine = self.weights(runner)
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, mine)
        assert all(torch.equal(mine, theirs) for theirs in everyones), "the processes' weights differ"
        assert not torch.equal(mine, self.start), "no weight has changed"

    def weights(self, runner):
        return torch.nn.utils.parameters_to_vector(runner.model.parameters()).detach().clone()
"""

CONFIG = """
_base_ = "{demo}"
custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.training.hooks", "same_weights"])
custom_hooks = [dict(type="NonFiniteLossHook"), dict(type="ExactResumeHook"), dict(type="SameWeights")]
train_cfg = dict(max_iters={iterations}, val_interval=1000)
train_dataloader = dict(batch_size=2, dataset=dict(data_root="{data}/"))
val_dataloader = dict(dataset=dict(data_root="{data}/"))
val_evaluator = dict(ann_file="{data}/annotations/val.json")
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={iterations}))
"""


def test_launcher_pytorch_trains_the_demo(tmp_path: Path) -> None:
    """Two processes train the demo's Mask R-CNN on RevBiFPN-S0: finite losses, the same weights in both,
    statistics moved once an iteration; then they validate.
    """
    data, work = tmp_path / "data", tmp_path / "work"
    make_demo_data(data, DemoDataParameters(num_train=8, num_val=2, image_size=64))
    demo = ROOT / "configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(demo=demo.as_posix(), data=data.as_posix(), iterations=ITERATIONS))
    (tmp_path / "same_weights.py").write_text(PLUG_IN)

    train = [str(ROOT / "tools/train.py"), str(config), "--launcher", "pytorch", "--work-dir", str(work)]
    command = [*LAUNCHER, *train]
    run_all([command], tmp_path, timeout=240, PYTHONPATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")

    (log,) = work.glob("*/*.log")
    assert "Distributed launcher: pytorch" in log.read_text()
    assert f"GPU number: {WORLD_SIZE}" in log.read_text()  # MMEngine's name for the number of processes
    (scalars,) = work.glob("*/vis_data/scalars.json")
    *steps, validation = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert len(steps) == ITERATIONS
    assert all(math.isfinite(step["loss"]) for step in steps)
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= validation.keys()
    state = torch.load(work / f"iter_{ITERATIONS}.pth", map_location="cpu", weights_only=False)["state_dict"]
    counts = {int(value) for name, value in state.items() if name.startswith("backbone.") and name.endswith("_tracked")}
    assert counts == {ITERATIONS}
