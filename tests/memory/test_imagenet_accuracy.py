"""Published accuracies are found by timm's names."""

from __future__ import annotations

from revbifpn.memory.imagenet_accuracy import published_top1


def test_by_name() -> None:
    assert published_top1("revbifpn_s6") == 84.2
    assert published_top1("efficientnet_b7") == published_top1("tf_efficientnet_b7.ns_jft_in1k") == 84.3
    assert published_top1("resnet50.a1_in1k") == 76.1
    assert published_top1("resnet18") is published_top1("revbifpn_s9") is None
