"""MMEngine's Runner made from a config, with checkpoints read safely and errors that say what to mend."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from revbifpn.training.checkpoints import WEIGHTS_ONLY
from revbifpn.training.config_files import named_build_errors
from revbifpn.training.errors import ConfigError
from revbifpn.training.hooks import SafeCheckpointHook  # noqa: F401  (registered)
from revbifpn.training.sparsity import use_sparsity


@RUNNERS.register_module()
class SafeRunner(Runner):
    """MMEngine's Runner with safe checkpoints, and with errors that name the config's fault.

    Checkpoints are read with :func:`.load_from_weights_only` alone, and get their names when they are whole.

    Raises:
        ConfigError: if something cannot be made from the config (:func:`.named_build_errors`).
    """

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Load weights, or all of a checkpoint that is resumed; never by free unpickling.

        Raises:
            FileNotFoundError, CheckpointError: if it is missing, damaged, or holds other objects than a checkpoint needs.
        """
        return super().load_checkpoint(f"{WEIGHTS_ONLY}{filename}", *args, **kwargs)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint. In a local folder it has its name, or takes the place of an older one, when it is written."""
        if "://" in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        unfinished = Path(out_dir, f"{filename}.unfinished")
        super().save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
        unfinished.replace(Path(out_dir, filename))

    def train(self) -> Any:
        """Train as the config says."""
        with named_build_errors(self.cfg):
            return super().train()

    def test(self) -> Any:
        """Test as the config says; returns the metrics by name."""
        with named_build_errors(self.cfg):
            return super().test()


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that a config asks for: a :class:`SafeRunner`, unless it names another (``runner_type``).

    Without the tensorboard package its scalars are left out, and a line on stderr says so.

    Raises:
        ConfigError: if something cannot be made from the config, or the launcher did not start this process.
    """
    if cfg.launcher == "pytorch" and "RANK" not in os.environ:
        raise ConfigError(
            "--launcher pytorch: this process was not started by torch's launcher. Start it with "
            "python -m torch.distributed.run --nproc_per_node=N ..., or leave --launcher out"
        )
    backends = (cfg.get("visualizer") or {}).get("vis_backends") or []
    if any(b["type"] == "TensorboardVisBackend" for b in backends) and importlib.util.find_spec("tensorboard") is None:
        print("tensorboard is not installed: no scalars for it (pip install tensorboard)", file=sys.stderr)
        cfg.visualizer.vis_backends = [b for b in backends if b["type"] != "TensorboardVisBackend"]
    if cfg.launcher == "pytorch" and not torch.cuda.is_available():
        # MMEngine asks for a GPU before it starts a process group, but leaves alone a group that is there already.
        torch.distributed.init_process_group("gloo")
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
        cfg.model_wrapper_cfg = cfg.get("model_wrapper_cfg") or wrapper
    use_sparsity(cfg)
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint")
    if checkpoint and checkpoint.get("type") == "CheckpointHook":
        checkpoint.type = "SafeCheckpointHook"
    _read_pretrained_safely(cfg.model)
    with named_build_errors(cfg):
        return SafeRunner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)


def _read_pretrained_safely(node: Any) -> None:
    """Let modules other than RevBiFPN, which reads its own safely, read files and addresses of ``init_cfg`` safely."""
    if isinstance(node, dict):
        inits = node["init_cfg"] if isinstance(node.get("init_cfg"), list) else [node.get("init_cfg")]
        for init in inits if node.get("type") != "RevBiFPN" else []:
            if not isinstance(init, dict) or not isinstance(name := init.get("checkpoint"), str):
                continue
            if ("://" not in name or name.startswith("http")) and WEIGHTS_ONLY not in name:
                init["checkpoint"] = f"{WEIGHTS_ONLY}{name}"
        for value in node.values():
            _read_pretrained_safely(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _read_pretrained_safely(value)
