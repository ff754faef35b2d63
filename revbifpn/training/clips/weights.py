"""Class weights from the training split."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from revbifpn.models.clips import ClipClassifier
from revbifpn.training.clips.data import ClipDataset
from revbifpn.training.errors import ConfigError


def class_weights(counts: Sequence[float], power: float = 1.0) -> list[float]:
    """Weights in proportion to ``counts ** -power``, whose mean over the samples is 1; 0 for levels that no sample has.

    Args:
        counts: samples of each level.
        power: 1 balances the levels, 0 weights all alike; DAiSEE's rarest level is 75 times rarer than its most common one,
            and 0.5 makes a factor of 9 of that.
    """
    raw = [count**-power if count > 0 else 0.0 for count in counts]
    mean = sum(count * weight for count, weight in zip(counts, raw, strict=True)) / sum(counts)
    return [weight / mean for weight in raw]


@HOOKS.register_module()
class ClassWeightsHook(Hook):
    """Weights each output's loss by the levels' frequencies in the training split, before the first step.

    Args:
        power: see :func:`class_weights`.

    Raises:
        ConfigError: when training begins, if the training set is no :class:`.ClipDataset`, or has no label of an output.
    """

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def before_train(self, runner: Runner) -> None:
        """Set the weights, and write them into the log."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        network, dataset = getattr(model, "network", None), runner.train_loop.dataloader.dataset
        if not isinstance(network, ClipClassifier) or not isinstance(dataset, ClipDataset):
            raise ConfigError("ClassWeightsHook is for a ClipRecognizer that trains on a ClipDataset")
        for name in network.outputs:
            counts = dataset.split.counts(name)
            if not sum(counts):
                raise ConfigError(f"no clip of the training split has a label of {name}: leave the output out")
            weights = class_weights(counts, self.power)
            network.output(name).set_class_weights(weights)
            pairs = ", ".join(f"{count:g} x {weight:.3g}" for count, weight in zip(counts, weights, strict=True))
            print_log(f"{name}: clips of each level x their weight: {pairs}", logger="current")
