"""Figures that others printed: accuracies, and the RevBiFPN paper's memory figures."""

from __future__ import annotations

from dataclasses import dataclass

from revbifpn.models.published_weights import PUBLISHED

#: ImageNet top-1 in percent. EfficientNet: Tan and Le, ICML 2019, table 2. ResNet-50: He et al., CVPR 2016 (torchvision's
#: first weights). MobileNetV3: Howard et al., ICCV 2019, table 3. HRNet-W18-C: the authors' repository. Weights that timm
#: trained with newer recipes are more accurate.
_TOP1 = {
    "efficientnet_b0": 77.1,
    "efficientnet_b1": 79.1,
    "efficientnet_b2": 80.1,
    "efficientnet_b3": 81.6,
    "efficientnet_b4": 82.9,
    "efficientnet_b5": 83.6,
    "efficientnet_b6": 84.0,
    "efficientnet_b7": 84.3,
    "resnet50": 76.1,
    "mobilenetv3_large_100": 75.2,
    "hrnet_w18": 76.8,
}


def published_accuracy(name: str) -> float | None:
    """ImageNet top-1 in percent that a model's authors printed; None if it is not known here."""
    base = name.split(".")[0].removeprefix("tf_")
    if base.startswith("revbifpn_") and base[-2:] in PUBLISHED:
        return PUBLISHED[base[-2:]].top1
    return _TOP1.get(base)


@dataclass(frozen=True)
class PrintedPoint:
    """A point of a figure in the RevBiFPN paper.

    Attributes:
        gigabytes: training memory per sample (ImageNet), per image (Faster R-CNN) or for two images (Mask R-CNN).
        approximate: read off a plot.
        gmacs: as printed; None where it is not.
        quality: top-1, or box AP.
    """

    name: str
    gigabytes: float
    quality: float
    gmacs: float | None = None
    approximate: bool = False


#: RevBiFPN paper, figure "MACs against training memory" (ImageNet, one GPU).
IMAGENET_FIGURE = (
    PrintedPoint("revbifpn_s0", 0.01, 72.8, 0.308, True),
    PrintedPoint("revbifpn_s1", 0.02, 75.9, 0.617, True),
    PrintedPoint("revbifpn_s2", 0.03, 79.0, 1.37, True),
    PrintedPoint("revbifpn_s3", 0.045, 81.1, 3.33, True),
    PrintedPoint("revbifpn_s4", 0.11, 83.0, 10.6),
    PrintedPoint("revbifpn_s5", 0.23, 83.7, 21.8),
    PrintedPoint("revbifpn_s6", 0.25, 84.2, 38.1),
    PrintedPoint("efficientnet_b5", 1.44, 83.6, 10.0),
    PrintedPoint("efficientnet_b6", 2.61, 84.0, 19.0),
    PrintedPoint("efficientnet_b7", 5.05, 84.3, 37.0),
)

#: RevBiFPN paper, Mask R-CNN 1x on COCO: memory for two images of 1333x800, box AP.
MASK_RCNN_TABLE = (
    PrintedPoint("revbifpn_s0", 2.0, 31.4, 188.2),
    PrintedPoint("revbifpn_s1", 2.4, 34.0, 193.7),
    PrintedPoint("revbifpn_s2", 2.6, 37.1, 210.5),
    PrintedPoint("revbifpn_s3", 2.6, 39.4, 232.9),
    PrintedPoint("revbifpn_s4", 4.1, 41.5, 304.1),
    PrintedPoint("revbifpn_s5", 5.5, 42.2, 382.0),
    PrintedPoint("revbifpn_s6", 7.4, 43.3, 518.5),
    PrintedPoint("hrnetv2p_w18", 6.7, 37.1, 249.3),
    PrintedPoint("hrnetv2p_w32", 9.0, 40.9, 352.0),
)

#: RevBiFPN paper, Faster R-CNN 1x on COCO: memory per image of 1333x800, box AP.
FASTER_RCNN_FIGURE = (
    PrintedPoint("revbifpn_s0", 0.84, 31.4, None, True),
    PrintedPoint("revbifpn_s1", 0.89, 32.0, None, True),
    PrintedPoint("revbifpn_s2", 1.07, 36.3, None, True),
    PrintedPoint("revbifpn_s3", 1.31, 38.7, 180.99),
    PrintedPoint("revbifpn_s4", 2.02, 40.3, None, True),
    PrintedPoint("revbifpn_s5", 2.75, 41.3, 328.91),
    PrintedPoint("revbifpn_s6", 3.69, 42.2, 465.43),
    PrintedPoint("hrnetv2p_w18", 3.13, 36.2, 196.18),
    PrintedPoint("hrnetv2p_w32", 4.31, 39.6, 298.96),
    PrintedPoint("hrnetv2p_w48", 5.82, 41.3, 481.92),
    PrintedPoint("resnet101_fpn", 2.72, 39.2, 296.58),
)
