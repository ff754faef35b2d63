"""Top-1 accuracies on ImageNet that the authors of models published."""

from __future__ import annotations

from revbifpn.models.published_weights import PUBLISHED

#: In percent. EfficientNet: Tan and Le, ICML 2019, table 2. ResNet-50: He et al., CVPR 2016 (torchvision's first weights).
#: MobileNetV3: Howard et al., ICCV 2019, table 3. HRNet-W18-C: the authors' repository. Weights that timm trained with newer
#: recipes are more accurate.
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


def published_top1(name: str) -> float | None:
    """Return the top-1 accuracy on ImageNet, in percent, that a model's authors published; None if it is not known here.

    Args:
        name: timm's name of the model; a ``tf_`` before it and a ``.tag`` after it do not matter.
    """
    base = name.split(".")[0].removeprefix("tf_")
    if base.startswith("revbifpn_") and base[-2:] in PUBLISHED:
        return PUBLISHED[base[-2:]].top1
    return _TOP1.get(base)
