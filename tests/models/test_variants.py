"""The family's data: parameter counts, shapes, initialisation, multiply-accumulates, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.macs import PUBLISHED, count_macs
from revbifpn.models import VARIANTS, RevBiFPN, RevBiFPNPyramid, get_variant
from revbifpn.models.blocks import MBConv, repeat_channels

# total, body, neck, head: counted by running the published architecture
PARAMETERS = {
    "s0": (3_419_196, 1_308_750, 247_578, 1_862_868),
    "s1": (5_112_300, 2_040_258, 399_466, 2_672_576),
    "s2": (10_576_528, 4_772_252, 948_788, 4_855_488),
    "s3": (19_574_184, 10_574_744, 1_592_406, 7_407_034),
    "s4": (48_687_336, 30_742_248, 3_712_104, 14_232_984),
    "s5": (81_998_976, 52_779_582, 6_438_098, 22_781_296),
    "s6": (142_307_972, 98_676_316, 10_030_270, 33_601_386),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = RevBiFPN(name)
    assert (count(model), count(model.body), count(model.neck), count(model.head)) == PARAMETERS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_multiply_accumulates(name: str) -> None:
    """With the published counting rules to the last digit; torch's leave out norms, biases and upsampling."""
    macs = count_macs(VARIANTS[name], published_rules=True)
    assert macs == PUBLISHED[name]
    assert 0.85 * macs < count_macs(VARIANTS[name]) < macs


def test_channels_are_scaled_by_exact_fractions() -> None:
    assert VARIANTS["s1"].channels == (64, 80, 96, 208)
    assert VARIANTS["s3"].neck_channels == (128, 160, 336, 848)
    assert VARIANTS["s6"].fc_features == 8528
    assert [v.stem_channels for v in VARIANTS.values()] == [3, 4, 6, 8, 12, 16, 20]


def test_levels_have_strides_4_8_16_32() -> None:
    model = RevBiFPNPyramid("s1").eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, 64, 16, 24), (1, 80, 8, 12), (1, 160, 4, 6), (1, 416, 2, 3)]  # fmt: skip


def test_image_channels_are_repeated_in_turn() -> None:
    image = torch.arange(3.0).view(1, 3, 1, 1)
    assert repeat_channels(image, 8).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert repeat_channels(image, 3) is image


def test_stochastic_depth_rises_linearly_and_spares_creating_edges() -> None:
    model = RevBiFPN("s0", drop_path_rate=0.5)
    for stage in range(5):
        blocks, silo = model.stage_layers(stage)
        rates = {m.drop_prob for m in blocks.modules() if hasattr(m, "drop_prob")}
        assert rates == {0.5 * (stage + 1) / 5}
        for coupling in silo.couplings():
            creates = coupling.name.startswith("down") and coupling.target in silo.plan().created
            assert any(hasattr(m, "drop_prob") for m in coupling.edge.modules()) != creates
    assert not any(hasattr(m, "drop_prob") for part in (model.neck, model.head) for m in part.modules())


def test_variants_carry_their_regularisation() -> None:
    model = RevBiFPN("s3")
    assert model.head.drop_rate == 0.3
    assert max(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")) == pytest.approx(0.05)
    assert not any(hasattr(m, "drop_prob") for m in RevBiFPN("s3", drop_path_rate=0.0).modules())


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    torch.manual_seed(0)
    model = RevBiFPN("s0", drop_rate=0.5, drop_path_rate=0.5)
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        features = model.forward_features(x)
        model.train()
        assert not torch.equal(model.forward_head(features), model.forward_head(features))
        assert not torch.equal(model.forward_features(x), model.forward_features(x))


def test_initialisation() -> None:
    """Kaiming normal, fan-out, ReLU's gain; squeeze-excite biases 0, norms 1 and 0; torch's default for the linear layer."""
    torch.manual_seed(0)
    model = RevBiFPN("s2")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # As torch counts it, the groups do not divide the fan-out.
            fan_out = module.out_channels * math.prod(module.kernel_size)
            if module.weight.numel() > 4000:  # the sample's standard deviation is then within 5 standard errors of 10%
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-3
            assert module.momentum == 0.1
            assert (module.weight == 1).all()
            assert not module.bias.any()
    bound = 1 / math.sqrt(model.head.fc.in_features)
    assert model.head.fc.weight.abs().max() <= bound
    assert model.head.fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_mbconv_squeeze_excite_width_follows_its_input() -> None:
    block = MBConv(80, 64, 3, expand=2, se_ratio=0.125)
    assert block.se.fc1.weight.shape == (10, 160, 1, 1)
    assert MBConv(4, 4, 3, se_ratio=0.1).se.fc1.out_channels == 1


@pytest.mark.parametrize("name", ["s7", "resnet50", "", "s10"])
def test_unknown_variant_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown RevBiFPN variant '{name}': choose one of s0, s1, s2, s3, s4, s5, s6"):
        RevBiFPN(name)


def test_variant_by_its_full_name() -> None:
    assert get_variant("revbifpn_s3") is get_variant("S3") is VARIANTS["s3"]


@pytest.mark.parametrize(("h", "w", "padded"), [(100, 128, "128x128"), (64, 33, "64x64"), (0, 32, "0x32")])
def test_image_sides_must_be_multiples_of_32(h: int, w: int, padded: str) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, got {h}x{w}: .* {padded} .*pad_size_divisor=32"):
        RevBiFPN("s0")(torch.zeros(1, 3, h, w))


def test_image_channels_must_be_in_chans() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), got \(1, 4, 32, 32\).*in_chans"):
        RevBiFPN("s0")(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="in_chans must be an integer >= 1, got 0"):
        RevBiFPN("s0", in_chans=0)
