r"""Sparse training in ordinary parameters: zeros are kept at exact zero, and no key, name or type of the network changes.

:class:`SparseTraining` hangs on an optimizer's step by torch's own hooks, so any training loop trains sparse::

    sparse = SparseTraining(model, optimizer, sparsity=0.9, method="rigl", total_steps=10_000)
    for images, labels in loader:
        loss(model(images), labels).backward()
        sparse.step(max_norm=1.0)              # instead of clipping and optimizer.step()
        optimizer.zero_grad()

Order within a step: unscale the gradients; read the dense gradients, if RigL needs them; mask the gradients; clip them;
optimizer step; change the masks; mask weights and optimizer state. A weight that is zero where its mask drops is an
ordinary leaf, so its ``grad`` after backward *is* the dense gradient: there is no second backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from revbifpn.sparsity.algorithms import Schedule
from revbifpn.sparsity.arguments import check_holds, check_state, inner_network, last_step
from revbifpn.sparsity.distribution import check_sparsity, zeros_of
from revbifpn.sparsity.masks import (
    MaskError,
    Masks,
    apply_masks,
    apply_to_copy,
    check_masks,
    check_zeros,
    density,
    magnitude_mask,
    masks_of_zeros,
    random_mask,
)
from revbifpn.sparsity.selection import select_weights

INITIAL = ("random", "magnitude", "zeros")


class SparseTraining:
    """Keeps a network sparse while an optimizer trains it.

    Make it after the optimizer and before its first step. The weights are masked at once, then after each step.

    Args:
        model: the network; a ``DistributedDataParallel`` or compiled one is looked into, names are those of the network.
        optimizer: torch's or timm's; ``Lookahead`` too.
        sparsity: fraction of zeros in the weights that become sparse, 0 <= sparsity < 1; None where ``masks`` says it.
        method: ``"static"``, ``"set"``, ``"rigl"`` or ``"gradual"`` (:mod:`.algorithms`).
        distribution: of the zeros over the weights, ``"uniform"`` or ``"erk"`` (:mod:`.distribution`).
        dense: patterns of further weights that stay dense (:func:`.select_weights`). Frozen weights stay dense as well.
        total_steps: of the optimizer in the whole training; SET, RigL and gradual pruning need it, or ``end``.
        begin, end: steps between which masks change; ``end`` is by default three quarters of ``total_steps``.
        update_every: steps from one change of the masks to the next.
        drop_fraction: of the kept entries that SET and RigL replace at first; it falls along a cosine.
        dense_from: after so many steps all masks are lifted and the network trains dense from zeros on (SPDF, UAI 2023).
        seed: of the random masks, and of SET's growth.
        masks: ``"random"``; ``"magnitude"`` keeps the largest weights; ``"zeros"`` takes the zeros that the weights have, such
            as those of a pruned checkpoint; or masks by name. With the last two the masks say the sparsity.
        state: what :meth:`state_dict` returned, to go on with weights and optimizer state that were loaded before.

    Attributes:
        weights: the weights with masks, by name.
        masks: their masks, True where an entry is kept.
        steps: the optimizer's steps so far; a step that loss scaling leaves out does not count.

    Raises:
        ValueError: for arguments that do not go together, an optimizer that does not hold the weights, or one that has taken
            steps where masks are drawn at random; :class:`MaskError`, one of them, for masks or a state of another network.
            Nothing is changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float | None = None,
        method: str = "rigl",
        *,
        distribution: str = "uniform",
        dense: Sequence[str] = (),
        total_steps: int | None = None,
        begin: int = 0,
        end: int | None = None,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        dense_from: int | None = None,
        seed: int = 0,
        masks: str | Mapping[str, Tensor] = "random",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        network = inner_network(model)
        selected = select_weights(network, dense)
        self.weights = {name: weight for name, weight in selected.items() if weight.requires_grad}
        self.schedule = Schedule(method, begin, last_step(method, end, total_steps), update_every, drop_fraction)
        if dense_from is not None and dense_from < 1:
            raise ValueError(f"dense_from must be a step from 1 on, got {dense_from!r}")
        self.dense_from = dense_from
        self.optimizer = optimizer
        self._stepping: torch.optim.Optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead
        self.steps = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._copies: list[nn.Module] = []
        self._gradients: dict[str, Tensor] = {}
        self._read = False
        check_holds(optimizer, self.weights)
        check_state(state)
        if state is not None and sparsity is None:  # the masks that said it have moved since
            self.zeros, self.masks = dict(state["zeros"]), {}
        else:
            self.zeros, self.masks = self._begin(sparsity, distribution, masks)
        if state is not None:
            self.load_state_dict(state)
        else:
            if any(self._stepping.state.get(w) for w in self.weights.values()) and not self.is_dense and masks == "random":
                raise ValueError(
                    "the optimizer was made before the masks: it has taken steps, or its state was loaded. Make SparseTraining"
                    " before the first step; to resume, give it state=, or load the optimizer's state after it"
                )
            self._share()
            self._apply()
        self._hooks = [
            self._stepping.register_step_pre_hook(lambda *_: self._before_step()),
            self._stepping.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def _begin(
        self, sparsity: float | None, distribution: str, masks: str | Mapping[str, Tensor]
    ) -> tuple[dict[str, int], Masks]:
        if isinstance(masks, str) and masks not in INITIAL:
            raise ValueError(f"masks must be one of {', '.join(INITIAL)}, or masks by name, got {masks!r}")
        given = masks_of_zeros(self.weights) if masks == "zeros" else None if isinstance(masks, str) else dict(masks)
        if given is not None:
            if sparsity is not None:
                raise ValueError(f"the masks say the sparsity: leave sparsity={sparsity!r} out, or masks")
            if self.schedule.method == "gradual":
                raise ValueError("method 'gradual' begins dense: it takes no masks")
            check_masks(self.weights, given)
            own = _owned(given, self.weights)
            return {name: mask.numel() - int(mask.sum()) for name, mask in own.items()}, own
        if sparsity is None:
            raise ValueError("say the sparsity, the fraction of zeros: sparsity=0.75, or masks")
        zeros = zeros_of(self.weights, check_sparsity(sparsity), distribution)
        if self.schedule.method == "gradual":
            ones = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in self.weights.items()}
            return zeros, _owned(ones, self.weights)
        if masks == "magnitude":
            return zeros, {name: magnitude_mask(weight, zeros[name]) for name, weight in self.weights.items()}
        return zeros, {
            name: random_mask(weight.shape, zeros[name], self._generator).to(weight.device)
            for name, weight in self.weights.items()
        }

    @property
    def is_dense(self) -> bool:
        """Whether no mask drops anything: before gradual pruning has begun, and from ``dense_from`` on."""
        return self._density == 1

    @property
    def density(self) -> float:
        """The fraction of entries that are kept, of the weights with masks."""
        return self._density

    @property
    def masks(self) -> Masks:
        """The masks by name; they are read, never written, from outside."""
        return self._masks

    @masks.setter
    def masks(self, masks: Masks) -> None:
        self._masks = masks
        self._density = density(masks.values())

    def densities(self) -> dict[str, float]:
        """The fraction of entries that are kept, of each weight with a mask."""
        return {name: density([mask]) for name, mask in self.masks.items()}

    def step(self, scaler: torch.amp.GradScaler | None = None, max_norm: float | None = None) -> Tensor | None:
        """Take one step of the optimizer, and of the loss scaling.

        Args:
            scaler: of loss scaling, whose ``step`` and ``update`` are called. It leaves a step with gradients that overflowed
                out; masks stay as they are then.
            max_norm: clip the masked gradients' norm to this.

        Returns:
            The norm of the masked gradients before clipping; None without ``max_norm``.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self.mask_gradients()
        norm = None
        if max_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return norm

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Read the dense gradients where the next change of the masks needs them, then mask the gradients.

        A loop of your own calls it before it clips gradients, so that only kept entries count in their norm; without clipping
        the optimizer's step does it. Call it in every step or in none.
        """
        self._gradients.clear()
        if self.schedule.reads_gradient_at(self.steps + 1):
            for name, weight in self.weights.items():
                self._gradients[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
        self._mask_gradients()
        self._read = True

    def _mask_gradients(self) -> None:
        if not self.is_dense:
            apply_masks({name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}, self.masks)

    def _before_step(self) -> None:
        if self._read:
            self._mask_gradients()  # once more: between them something may have added to the gradients
        else:
            self.mask_gradients()

    @torch.no_grad()
    def _after_step(self) -> None:
        self._read = False
        self.steps += 1
        was_dense = self.is_dense
        if self.dense_from is not None and self.steps >= self.dense_from:
            if not was_dense:
                self.masks = {name: torch.ones_like(mask) for name, mask in self.masks.items()}
            return
        if self.schedule.acts_at(self.steps):
            self._apply()  # what the optimizer did to dropped entries and their state must not be what grows
            self.masks = {
                name: self.schedule.changed(
                    self.steps, weight, self.masks[name], self.zeros[name], self._gradients.get(name), self._generator
                )
                for name, weight in self.weights.items()
            }
            self._gradients.clear()
            self._share()
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        """Mask weights, the optimizer's state of them, and the copies that are tracked."""
        if self.is_dense:
            return
        apply_masks(self.weights, self.masks)
        for name, weight in self.weights.items():
            entries = self._stepping.state.get(weight, {})
            tensors = [value for value in entries.values() if isinstance(value, Tensor) and value.shape == weight.shape]
            for tensor in tensors:
                apply_masks({name: tensor}, self.masks)
        for copy in self._copies:
            apply_to_copy(copy, self.masks)

    def _share(self) -> None:
        """Give all processes the masks of the first."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for mask in self.masks.values():
                dist.broadcast(mask.view(torch.uint8), 0)

    def track(self, copy: nn.Module) -> None:
        """Keep a copy of the network, such as an exponential moving average, at zero where the masks drop.

        An average of changing masks would be denser than each of them. Weights that grow begin at zero in the average too.

        Args:
            copy: a module with the network's names: ``ema.module`` of timm's ``ModelEmaV3``.

        Raises:
            MaskError: if it is no copy of the network.
        """
        apply_to_copy(copy, self.masks)
        self._copies.append(copy)

    def remove(self) -> None:
        """Take the hooks off the optimizer: masks act no more, zeros may be trained."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Masks, steps and random state: tensors and plain values, which load with ``weights_only=True``."""
        return {
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "zeros": dict(self.zeros),
            "steps": self.steps,
            "lifted": self.dense_from is not None and self.steps >= self.dense_from,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Load the weights that were saved with it before.

        Raises:
            MaskError: if it is of another network or sparsity, or the weights are not zero where its masks drop. Nothing is
                changed then.
        """
        check_state(state)
        masks = {name: mask.to(torch.bool) for name, mask in state["masks"].items()}
        check_masks(self.weights, masks)
        steps = int(state["steps"])
        lifted = self.dense_from is not None and steps >= self.dense_from
        if lifted != state["lifted"]:
            raise MaskError(
                f"after {steps} steps the state's masks are lifted or not, unlike here: dense_from={self.dense_from}"
            )
        for name, mask in masks.items():
            expected = 0 if lifted else self.schedule.zeros_at(steps, self.zeros[name])
            found = mask.numel() - int(mask.sum())
            if found != expected:
                raise MaskError(
                    f"the state is of another sparsity or schedule: after {steps} steps {name} has {found} zeros of "
                    f"{mask.numel()} in it, and {expected} here"
                )
        check_zeros(self.weights, masks)
        generator = torch.Generator()
        generator.set_state(state["generator"].cpu())
        self.masks = _owned(masks, self.weights)
        self.steps, self._generator, self._read = steps, generator, False
        self._gradients.clear()
        self._apply()


def _owned(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Masks:
    """Copies of masks where their weights are, in one piece each, as processes exchange them."""
    return {name: masks[name].to(w.device, copy=True).contiguous() for name, w in weights.items()}
