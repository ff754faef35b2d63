"""Do the clips that a config names fit each other and the model? Asked before the first step."""

from __future__ import annotations

from typing import Any

from revbifpn.datasets.clips import ClipSplit, check_splits
from revbifpn.training.checks import LOADERS, datasets
from revbifpn.training.clips.data import levels_of, read_split
from revbifpn.training.errors import ConfigError


def check_clips(cfg: Any, *loaders: str) -> None:
    """Check all splits of a config of clip classification against each other and against the model.

    Args:
        cfg: MMEngine config.
        loaders: keys of ``cfg`` whose data has to be there; splits of the others are looked at where they are there.

    Raises:
        FileNotFoundError: naming what is missing and the layout that is expected.
        DataError: if clips are at fault, all offenders at once (:func:`.check_splits`).
        ConfigError: if a data set has other outputs, or another number of frames, than the model.
    """
    splits: dict[tuple[str, ...], ClipSplit] = {}
    may_miss = set()
    for loader in LOADERS:
        for dataset in datasets(cfg.get(loader)):
            _check_fit(cfg, loader, dataset)
            try:
                found = read_split(dataset)
            except FileNotFoundError:
                if loader in loaders:
                    raise
                continue
            splits[str(dataset["root"]), dataset["split"]] = found
            if dataset.get("on_error") == "skip":
                may_miss.add(found.name)
    check_splits(splits.values(), may_miss)


def _check_fit(cfg: Any, loader: str, dataset: Any) -> None:
    for what, settings, names in (
        ("model", cfg.model, ("outputs",)),
        (f"data set of {loader}", dataset, ("root", "split", "outputs", "frames")),
    ):
        if missing := [name for name in names if settings.get(name) is None]:
            raise ConfigError(f"the {what} says no {', no '.join(missing)}")
    model, data = levels_of(cfg.model.outputs), levels_of(dataset["outputs"])
    if model != data:
        raise ConfigError(f"the model has the outputs {model}, the data set of {loader} {data}: they must be the same")
    frames = cfg.model.get("frames")
    if frames is not None and frames != dataset["frames"]:
        raise ConfigError(
            f"model.frames is {frames}, the data set of {loader} takes frames={dataset['frames']} of a clip: make them equal"
        )
