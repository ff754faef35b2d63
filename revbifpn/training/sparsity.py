"""Sparse training from a config: ``sparsity = dict(sparsity=0.75, method="rigl")`` beside ``model`` and ``optim_wrapper``.

The entry becomes a :class:`SparsityHook`, which makes a :class:`revbifpn.sparsity.SparseTraining` of the network (the model's
``backbone``, if it has one) and of whatever optimizer wrapper the config has. Loss scaling, accumulation, clipping, EMA,
checkpoints and ``--resume`` stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mmengine.dist as dist
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from revbifpn.sparsity import SparseTraining, selection_table
from revbifpn.training.errors import ConfigError

STATE = "sparsity"  # key of masks, steps and random state in a checkpoint


def use_sparsity(cfg: Config) -> None:
    """Turn the entry ``sparsity`` of a config, if it has one, into its hook.

    Raises:
        ConfigError: if it is no dict.
    """
    options = cfg.get(STATE)
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ConfigError(f"sparsity must be a dict, such as dict(sparsity=0.75, method='rigl'), got {options!r}")
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if hook.get("type") != "SparsityHook"]
    cfg.custom_hooks = [*hooks, dict(type="SparsityHook", **options)]


@HOOKS.register_module()
class SparsityHook(Hook):
    """Trains the network sparse, logs its density as ``density``, and keeps the masks in the checkpoints.

    A moving average (``EMAHook``) has the masks' zeros at all times, so it is validated and saved sparse.

    Args:
        options: those of :class:`revbifpn.sparsity.SparseTraining`. ``total_steps`` is the training's by itself; ``sparsity``
            may be left out for a model with ``sparse_ift``, which says it.

    Raises:
        ConfigError: when a training begins, for options that do not fit the network or the optimizer, or to resume from a
            checkpoint without masks or with those of another training.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.training: SparseTraining | None = None
        self._resumed: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the checkpoint's masks, if this is a resumption."""
        if runner._resume:
            if STATE not in checkpoint:
                raise ConfigError(
                    "the checkpoint to resume from has no masks: it is of a dense training. Begin a sparse one from its "
                    "weights with load_from, or leave sparsity out"
                )
            self._resumed = checkpoint[STATE]

    def before_train(self, runner: Runner) -> None:
        """Mask the network; weights and the optimizer's state are loaded by now."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        network = getattr(model, "backbone", model)
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise ConfigError(f"sparsity is for one optimizer with an OptimWrapper, got a {type(wrapper).__name__}")
        updates = -(-runner.max_iters // getattr(wrapper, "_accumulative_counts", 1))
        options = {"total_steps": updates, **_of_ift(model, self.options), "state": self._resumed}
        try:
            self.training = SparseTraining(network, wrapper.optimizer, **options)
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    average = hook.ema_model.module
                    self.training.track(getattr(average, "backbone", average))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"sparsity: {str(error).removeprefix('SparseTraining.__init__() ')}") from error
        mask_before_clipping(wrapper, self.training)
        if dist.is_main_process():
            runner.logger.info(
                f"Sparse training of {type(network).__name__}:\n{selection_table(network, options.get('dense', ()))}"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Tell the log what share of the weights with masks is kept; before the step, so that every record has it."""
        if self.training is not None:
            runner.message_hub.update_scalar("train/density", self.training.density)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put masks, steps and random state into the checkpoint."""
        if self.training is not None:
            checkpoint[STATE] = self.training.state_dict()


def mask_before_clipping(wrapper: OptimWrapper, training: SparseTraining) -> None:
    """Let an optimizer wrapper clip the masked gradients, not the dense ones; the rest hangs on its optimizer's step."""
    clip = wrapper._clip_grad

    def masked_clip() -> None:
        training.mask_gradients()
        clip()

    wrapper._clip_grad = masked_clip


def _of_ift(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, completed by what a transformed network says of its sparsity and of what stays dense."""
    found = getattr(model, "sparse_ift", None)
    if found is None or "masks" in options:
        return dict(options)
    sparsity, dense = found
    return {"sparsity": sparsity, **options, "dense": [*options.get("dense", ()), *dense]}
