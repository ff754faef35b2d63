"""Image classification with MMEngine's Runner and timm's data, losses and optimizers: the glue between the two.

Name this package in a config, and its parts are registered at MMEngine's root registries::

    custom_imports = dict(imports=["revbifpn.training.classification"])

Neither mmcv nor mmdet is needed.
"""

from revbifpn.datasets.image_folders import DataError, check_class_folders
from revbifpn.training.classification.data import (
    ClassificationDataset,
    ImageError,
    IterableClassificationDataset,
    SeededSampler,
)
from revbifpn.training.classification.metric import TopKAccuracy
from revbifpn.training.classification.model import ImageClassifier, ImagePreprocessor
from revbifpn.training.classification.optim import AutocastOptimWrapper, TimmOptimWrapperConstructor

__all__ = [
    "AutocastOptimWrapper",
    "ClassificationDataset",
    "DataError",
    "ImageClassifier",
    "ImageError",
    "ImagePreprocessor",
    "IterableClassificationDataset",
    "SeededSampler",
    "TimmOptimWrapperConstructor",
    "TopKAccuracy",
    "check_class_folders",
]
