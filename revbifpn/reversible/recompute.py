"""Recomputing an ordinary module in backward: keep its inputs instead of its inner activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from revbifpn.reversible.autograd import RecomputeFunction
from revbifpn.reversible.forms import Form, Setting, autocast_dtype, lean_form, without_autocast
from revbifpn.reversible.plain import PlainForm, PlainRun, modules_in_use
from revbifpn.reversible.plan import Planned, Structure
from revbifpn.reversible.refusals import are_transforms_active, check_replica, refuse_transforms


def recompute(module: nn.Module, *inputs: Tensor, store: bool = False, exact: bool = False) -> Tensor:
    """Run ``module(*inputs)`` and, in backward, run it again for its gradients.

    Like ``torch.utils.checkpoint``, but running statistics move once a step, the parameters are inputs of the autograd
    function, and a module with a lean form (see :func:`.register_lean_form`) is replayed in it.

    Args:
        module: takes tensors, returns one tensor.
        *inputs: kept until backward.
        exact: make the second run's operators the first one's, in shapes too: gradients are those of ``store`` bit for bit.
        store: keep what saves the second run its work. A module without a lean form then runs as it is.

    Raises:
        RuntimeError: for a replica of ``nn.DataParallel``, and under torch.func's transforms unless ``store``.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        output: Tensor = module(*inputs)
        return output
    check_replica(module)
    form, params = _form_of(module)
    lean = not isinstance(form, PlainForm)
    transformed = are_transforms_active()
    if (store and (transformed or not lean)) or not any(t.requires_grad for t in (*inputs, *params)):
        output = module(*inputs)
        return output
    if transformed:
        refuse_transforms("a recomputed module")
    recomputed = Recomputed(
        form,
        Setting(bits=0 if exact else None, autocast=autocast_dtype(inputs[0]), frugal=not store or exact),
        len(inputs),
        store,
    )
    output = RecomputeFunction.apply(recomputed, *inputs, *params)
    recomputed.setting.move_counters()
    return output


def _form_of(module: nn.Module) -> tuple[Form, list[Tensor]]:
    """A module's form, and its parameters as they are now."""
    with modules_in_use:
        planned = module.__dict__.get("_revbifpn_form")
        if planned is None:
            planned = module.__dict__["_revbifpn_form"] = Planned()
        form, _ = planned.get(lambda: _make(module), lambda pair: pair[1])
        return form, form.parameters()


def _make(module: nn.Module) -> tuple[Form, Structure]:
    return lean_form(module) or PlainForm(module), Structure([module])


class Recomputed:
    """One pass of a recomputed module."""

    def __init__(self, form: Form, setting: Setting, num_inputs: int, stored: bool) -> None:
        self.setting = setting
        self.num_inputs = num_inputs
        self.stored = stored
        self.run = form.begin(setting, stored)

    def record(self, inputs: Sequence[Tensor]) -> Tensor:
        """The module's value."""
        if isinstance(self.run, PlainRun):
            return self.run.record_all(inputs)
        with without_autocast(inputs[0]):
            return self.run.record(inputs[0])

    def gradients(
        self, tensors: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of inputs and parameters."""
        inputs, params = tensors[: self.num_inputs], tensors[self.num_inputs :]
        wants = needs[: self.num_inputs]
        if isinstance(self.run, PlainRun):
            plain = self.run.replay_all(inputs, params, grad, wants)
            return [*plain.input_grads(), *plain.param_grads()]
        (source,) = inputs
        with without_autocast(source):
            return self._lean_gradients(source, params, kept, grad, wants[0])

    def _lean_gradients(
        self, source: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor, wants_source: bool
    ) -> list[Tensor | None]:
        replay = self.run.replay(source, params, kept, grad, wants_source)
        replay.fresh = True
        for _ in replay.values():
            pass
        source_grad = replay.whole_source_grad()
        return [None if source_grad is None else source_grad.to(source.dtype), *replay.param_grads()]

    def differentiable(self, tensors: Sequence[Tensor]) -> Tensor:
        """The value as a differentiable function of inputs and parameters."""
        return self.run.differentiable(tensors[0], tensors[1:])
