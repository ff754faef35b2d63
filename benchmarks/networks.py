"""Every network that is measured, in every mode that it has: the one place that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.plain import PlainRevBiFPN
from revbifpn import BudgetError, RevBiFPN, set_exact, set_reversible
from revbifpn.memory.imagenet_accuracy import published_top1
from revbifpn.memory.sources import TimmSubject
from revbifpn.models import VARIANTS, Variant

#: RevBiFPN's own modes. A budget is the fraction of stored mode's activations that may be kept.
BUDGETS = {"budget 0.1": 0.1, "budget 0.25": 0.25, "budget 0.5": 0.5}
OWN_MODES = ("reversible", *BUDGETS, "stored", "exact")
#: The ordinary network of the same layers, also with ``torch.utils.checkpoint`` around every stage.
PLAIN_MODES = ("plain", "plain checkpointing")
#: Networks of timm, also with timm's own checkpointing.
TIMM_MODES = ("stored", "checkpointing")


class NotThereError(RuntimeError):
    """A mode that a network does not have; the message is one line that says so."""


@dataclass(frozen=True)
class Network:
    """A network in a mode, and the batch that it is trained with.

    Attributes:
        name: timm's name.
        mode: one of :func:`modes_of`; of RevBiFPN the yardstick's too.
        batch: images in a step.
        image_size: side of the images, in pixels.
        channels_last: memory format of weights and images; contiguous otherwise, which is what a user has who sets nothing.
    """

    name: str
    mode: str
    batch: int
    image_size: int
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}{', channels_last' if self.channels_last else ''}"

    @property
    def top1(self) -> float | None:
        """Published ImageNet accuracy in percent."""
        return published_top1(self.name)

    def build(self, variant: Variant | None = None, **options: Any) -> nn.Module:
        """The network in training mode, with the weights of seed 0, so that all modes of one network compute the same.

        Args:
            variant: RevBiFPN's, if it is another than the name says.
            **options: for the network's constructor, such as ``drop_rate``.

        Raises:
            NotThereError: if the network has no such mode.
        """
        torch.manual_seed(0)
        own = variant or variant_of(self.name)
        if own is None:
            model = timm.create_model(self.name, **options)
            if self.mode == "checkpointing" and "checkpointing" in modes_of(self.name):
                model.set_grad_checkpointing(True)
            elif self.mode != "stored":
                raise NotThereError(f"{self.name} has no mode {self.mode!r}: it has {', '.join(modes_of(self.name))}")
        elif self.mode in PLAIN_MODES:
            weights = RevBiFPN(own, **options).state_dict()
            model = PlainRevBiFPN(own, checkpointing=self.mode == "plain checkpointing", **options)
            model.load_state_dict(weights)
        else:  # a budget is planned for the format
            return in_mode(self._in_format(RevBiFPN(own, **options)), self.mode, self.image_size, self.batch).train()
        return self._in_format(model.train())

    def images(self) -> Tensor:
        """Random images, (batch, 3, image_size, image_size)."""
        return self._in_format(torch.randn(self.batch, 3, self.image_size, self.image_size))

    def labels(self) -> Tensor:
        """A class for each image, of ten."""
        return torch.arange(self.batch) % 10

    def on(self, device: str, **options: Any) -> tuple[nn.Module, Tensor]:
        """The network and its images, made on a device; on ``"meta"`` they are shapes, which are enough for a prediction.

        Raises:
            NotThereError: if the network has no such mode.
        """
        with torch.device(device):
            return self.build(**options), self.images()

    def _in_format(self, value: Any) -> Any:
        return value.to(memory_format=torch.channels_last) if self.channels_last else value


def in_mode(model: RevBiFPN, mode: str, image_size: int, batch: int) -> RevBiFPN:
    """Switch a new ``model`` to one of :data:`OWN_MODES`; returns it.

    Raises:
        NotThereError: for another mode, or a budget that is smaller than what reversible mode takes.
    """
    if mode not in OWN_MODES:
        raise NotThereError(f"RevBiFPN has no mode {mode!r}: it has {', '.join(OWN_MODES)}")
    if mode == "stored":
        set_reversible(model, False)
    elif mode == "exact":
        set_exact(model, True)
    elif mode in BUDGETS:
        try:
            model.set_activation_budget(BUDGETS[mode], image_size=image_size, batch=batch)
        except BudgetError as error:
            raise NotThereError(str(error)) from error
    return model


def variant_of(name: str) -> str | None:
    """``"revbifpn_s0"`` -> ``"s0"``; None for other networks."""
    variant = name.removeprefix("revbifpn_")
    return variant if variant in VARIANTS and variant != name else None


def modes_of(name: str) -> Sequence[str]:
    """The modes of a network, the usual one first; for RevBiFPN the yardstick's before its own.

    Raises:
        SubjectError: for a name that timm does not know.
    """
    if variant_of(name):
        return (*PLAIN_MODES, *OWN_MODES)
    with torch.device("meta"):
        return TimmSubject(name).modes  # "checkpointing" where timm can


def image_size_of(name: str) -> int:
    """The side of the images, in pixels, with which a network has its published accuracy."""
    published = f"tf_{name}" if timm.is_model(f"tf_{name}") else name  # timm trained the others anew, at other sizes
    return TimmSubject(published).image[0]


def build_all(networks: Iterable[Network], **options: Any) -> dict[Network, nn.Module]:
    """Build every network; what is not there is said in a line and left out."""
    models = {}
    for network in networks:
        try:
            models[network] = network.build(**options)
        except NotThereError as missing:
            print(f"left out: {missing}", flush=True)
    return models
