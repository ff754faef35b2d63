"""MMEngine hooks for long trainings: resuming bit for bit, wrong checkpoints, and losses that are no numbers.

They are registered at MMEngine's root registry; the runtimes in ``configs/_base_`` switch them on.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from revbifpn.models.checkpoints import check_state_dict
from revbifpn.training.errors import NonFiniteLossError

try:
    import mmengine.dist as dist
    from mmengine.hooks import CheckpointHook, EMAHook, Hook
    from mmengine.model import is_model_wrapper
    from mmengine.optim import OptimWrapper
    from mmengine.registry import HOOKS
    from mmengine.runner import IterBasedTrainLoop, Runner
except ImportError as error:
    raise ImportError(
        "this needs MMEngine: pip install 'revbifpn[train]', or for detection 'revbifpn[mmdet]' (see tools/setup.sh)"
    ) from error


@HOOKS.register_module()
class ResumeFitHook(Hook):
    """Refuses to go on from the checkpoint of another model, which MMEngine would load as far as it fits.

    Raises:
        CheckpointError: before the first step, naming the parts that differ.
    """

    priority = "VERY_HIGH"  # before the hooks that load their own state from the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's weights with the model's, if this is a resumption."""
        if runner._resume:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            check_state_dict(model, checkpoint["state_dict"], f"the checkpoint {runner._load_from} of --resume")


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, which removes what a new checkpoint takes the place of after that one is written, not before.

    So a training that is killed while it writes has a usable checkpoint, with ``max_keep_ckpts=1`` too.
    """

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        """Let the hook remove files later."""
        super().before_train(runner)
        self.file_backend = _RemovesLater(self.file_backend)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self.file_backend.remove_now()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()


class _RemovesLater:
    """A file backend that puts removing off."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._later: list[tuple[Any, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._later.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._later.append((self._backend.rmtree, path))

    def remove_now(self) -> None:
        for remove, path in self._later:
            remove(path)
        self._later.clear()


@HOOKS.register_module()
class AverageBuffersHook(Hook):
    """Averages the processes' running statistics before validation and checkpoints, those of the EMA weights too.

    Without it each process validates its share with statistics of its own, and the checkpoint holds the first one's.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        """Average before the checkpoint of an epoch."""
        self._average(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Average before a validation within an epoch."""
        self._average(runner)

    def _average(self, runner: Runner) -> None:
        models = [runner.model, *(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))]
        buffers = [b for model in models for b in model.buffers() if b.is_floating_point()]
        dist.all_reduce_params(buffers, op="mean")


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training equal to one that was never interrupted, bit for bit, in a single process.

    MMEngine restores weights, optimizer, schedule and the sampler's position. This hook adds the random state (sampled RoIs,
    dropout), keeps validation from moving it, and adds the gradients of an update that is still being accumulated. What it
    cannot restore is random state inside dataloader workers: for bit-identity use a data pipeline without randomness, or
    ``num_workers=0``.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the training's random state into the checkpoint."""
        # A new best score has MMEngine write the last checkpoint once more, in the middle of a validation.
        checkpoint["random_state"] = self._before_val or _get_random_state()
        goes_on = "optimizer" in checkpoint  # it is not the best weights alone
        if goes_on and dist.get_world_size() == 1 and not runner.optim_wrapper.should_update():
            gradients = {name: p.grad for name, p in runner.model.named_parameters() if p.grad is not None}
            checkpoint["accumulated_gradients"] = {name: gradient.cpu() for name, gradient in gradients.items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the checkpoint's random state, and take its gradients, if this is a resumption."""
        if runner._resume:
            self._resumed = checkpoint.get("random_state")
            parameters = dict(runner.model.named_parameters())
            for name, gradient in checkpoint.get("accumulated_gradients", {}).items():
                parameters[name].grad = gradient.to(parameters[name].device)

    def before_train(self, runner: Runner) -> None:
        """In an iteration-based loop, restore once the dataloader has been advanced, which itself draws random numbers."""
        if self._resumed is None or not isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        iterator = runner.train_loop.dataloader_iterator
        advance = iterator.skip_iter

        def advance_and_restore(num_iters: int) -> None:
            advance(num_iters)
            if iterator._iterator is None:  # the dataloader draws its workers' seed when its iterator is made
                iterator._iterator = iter(iterator._dataloader)
            self._restore()

        iterator.skip_iter = advance_and_restore

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore in an epoch-based loop, which resumes between epochs."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._restore()

    def _restore(self) -> None:
        if self._resumed is not None:
            _set_random_state(self._resumed)
            self._resumed = None

    def before_val(self, runner: Runner) -> None:
        """Validation must not move the training's random state: a resumed training may not repeat it."""
        self._before_val = _get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Set the training's random state back."""
        if self._before_val is not None:
            _set_random_state(self._before_val)
            self._before_val = None


def _get_random_state() -> dict[str, Any]:
    """Return all global random states as plain containers and tensors, which load with ``weights_only=True``."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Reports a loss that is NaN or infinite with its step, before it reaches the weights, and stops or skips.

    A skipped step changes neither weights nor optimizer state nor running statistics.

    With gradient accumulation a step is one of the ``accumulative_counts`` batches of an update, and that batch alone is left
    out: the update comes when it was due, with the mean of the other batches' gradients. So it estimates the same gradient
    as ever, from fewer images, and the schedule, and the iterations at which MMEngine saves and resumes, stay in step with
    the updates. An update is left out if all of its batches are.

    In distributed training all processes leave the same batches out, those for which the loss of any process is not
    finite. DDP exchanges the accumulated gradients in the backward pass of the last batch of an update; if that batch is
    left out, this hook averages them instead.

    With loss scaling (``AmpOptimWrapper``) the loss is looked at before it is scaled, and a skip leaves the scale as it is.
    Gradients that overflow under a finite loss are the scaler's concern: it drops the update and lowers the scale.

    Args:
        action: ``"stop"`` raises :class:`NonFiniteLossError`; ``"skip"`` leaves the step out and goes on.
        max_skips: with ``"skip"``, stop after so many skipped steps in a row.

    Raises:
        ValueError: for another action, or when a training begins that accumulates gradients in a model wrapper other than
            DDP, whose unreduced gradients cannot be reached, and is to skip.
    """

    def __init__(self, action: str = "stop", max_skips: int = 20) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"NonFiniteLossHook: action must be 'stop' or 'skip', got {action!r}")
        self.action = action
        self.max_skips = max_skips
        self._skipped_in_a_row = 0
        self._finite = 0  # batches of the update that is being accumulated
        self._skipped = 0
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Stand in front of the optimizer wrapper's update."""
        wrapper = runner.optim_wrapper
        update = wrapper.update_params

        def guarded_update(
            loss: Tensor, step_kwargs: dict[str, Any] | None = None, zero_kwargs: dict[str, Any] | None = None
        ) -> None:
            finite = torch.isfinite(loss.detach()).all().float()
            dist.all_reduce(finite, "min")
            batches = round(1 / wrapper.scale_loss(torch.ones(())).item())  # of this update: fewer in a training's last one
            if finite.item() == 1:
                self._skipped_in_a_row = 0
                self._finite += 1
                update(loss * (batches / (batches - self._skipped)) if self._skipped else loss, step_kwargs, zero_kwargs)
            else:
                self._report(runner, float(loss.detach()))
                for kept, buffer in zip(self._kept, self._buffers, strict=True):
                    buffer.copy_(kept)
                self._skipped += 1
                wrapper._inner_count += 1  # what the wrapper's backward does
                self._skip(wrapper, batches, step_kwargs or {}, zero_kwargs or {})
            if wrapper.should_update():
                self._finite = self._skipped = 0

        wrapper.update_params = guarded_update
        if self.action == "skip":
            accumulates = getattr(wrapper, "_accumulative_counts", 1) > 1
            if accumulates and is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDataParallel):
                raise ValueError(
                    f"NonFiniteLossHook: action 'skip' with accumulated gradients works in one process and with DDP, not with "
                    f"{type(runner.model).__name__}: use action 'stop', or accumulative_counts=1"
                )
            self._buffers = [buffer for module in runner.model.modules() for buffer in _statistics(module)]
            self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the running statistics: a forward pass on bad values would spoil them for good."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def _report(self, runner: Runner, loss: float) -> None:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"another process's loss is not finite (here it is {loss})"
        message = f"{what} at step {runner.iter + 1}"
        self._skipped_in_a_row += 1
        if self.action == "stop" or self._skipped_in_a_row > self.max_skips:
            again = f", and {self.max_skips} steps before it were skipped" if self.action == "skip" else ""
            raise NonFiniteLossError(
                f"{message}{again}: training stopped, the weights are those of the step before. Look at the data and the "
                "learning rate; NonFiniteLossHook(action='skip') leaves such steps out."
            )
        runner.logger.warning(f"{message}: step skipped; it changes neither weights nor running statistics")

    def _skip(self, wrapper: OptimWrapper, batches: int, step_kwargs: dict[str, Any], zero_kwargs: dict[str, Any]) -> None:
        """Let the finite batches of the update share the weight of the one just skipped, and take the step if it is due."""
        if not self._finite:
            return
        parameters = [parameter for group in wrapper.optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= (batches - self._skipped + 1) / (batches - self._skipped)
        if wrapper.should_update():
            _average_gradients(parameters)
            wrapper.step(**step_kwargs)
            wrapper.zero_grad(**zero_kwargs)


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over the processes as DDP does: a parameter that none of them used keeps having none."""
    if not parameters or dist.get_world_size() == 1:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(used, "max")
    parameters = [parameter for parameter, by_any in zip(parameters, used.tolist(), strict=True) if by_any]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    dist.all_reduce_params([p.grad for p in parameters if p.grad is not None], op="mean")


def _statistics(module: nn.Module) -> list[Tensor]:
    return list(module.buffers(recurse=False)) if isinstance(module, nn.modules.batchnorm._NormBase) else []
