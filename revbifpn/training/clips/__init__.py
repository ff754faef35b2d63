"""Clip classification with MMEngine's Runner: data sets, model, class weights and metrics.

Name this package in a config, and its parts are registered at MMEngine's root registries::

    custom_imports = dict(imports=["revbifpn.training.clips"])

Clips are read with PyAV, and scored with scikit-learn (extra ``video``).
"""

from revbifpn.training.classification.data import SeededSampler
from revbifpn.training.classification.optim import AutocastOptimWrapper, TimmOptimWrapperConstructor
from revbifpn.training.clips.data import ClipDataset
from revbifpn.training.clips.metric import ClipMetric
from revbifpn.training.clips.model import ClipPreprocessor, ClipRecognizer
from revbifpn.training.clips.weights import ClassWeightsHook

__all__ = [
    "AutocastOptimWrapper",
    "ClassWeightsHook",
    "ClipDataset",
    "ClipMetric",
    "ClipPreprocessor",
    "ClipRecognizer",
    "SeededSampler",
    "TimmOptimWrapperConstructor",
]
