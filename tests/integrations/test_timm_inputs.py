"""Image channels: stems with and without weights, pretrained weights for any number of channels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._hub import save_for_hf
from timm.optim import create_optimizer_v2
from torch import Tensor

from revbifpn import CheckpointError, RevBiFPN, RevBiFPNPyramid, convert_checkpoint, load_checkpoint, set_reversible
from revbifpn.models.blocks import MixChannels, repeat_channels
from tests.oracle import reference_state_dict


def random_image(channels: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, 64, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """S0 in the published layout."""
    path = tmp_path_factory.mktemp("published") / "revbifpn_s0.pth.tar"
    torch.save(reference_state_dict("revbifpn_s0"), path)
    return str(path)


def pretrained(file: str, name: str = "revbifpn_s0", **kwargs: object) -> RevBiFPN:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, **kwargs).eval()


def test_channels_take_slots_of_their_colour() -> None:
    def order(in_chans: int, slots: int) -> list[int]:
        return repeat_channels(torch.arange(float(in_chans)).view(1, -1, 1, 1), slots).flatten().int().tolist()

    assert order(1, 4) == [0, 0, 0, 0]
    assert order(2, 5) == [0, 1, 0, 1, 0]
    assert order(3, 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert order(4, 12) == [0, 1, 2, 3, 1, 2, 0, 1, 2, 3, 1, 2]
    assert order(6, 8) == [0, 1, 2, 3, 4, 5, 0, 1]
    for in_chans in range(3, 20):
        found = order(in_chans, 20)
        assert set(found) == set(range(in_chans))
        assert all(channel % 3 == slot % 3 for slot, channel in enumerate(found))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        image = torch.randn(2, 4, 6, 8).contiguous(memory_format=memory_format)
        assert repeat_channels(image, 6).is_contiguous(memory_format=memory_format)


def test_mixing_weights_are_timms_rule() -> None:
    weight = MixChannels(4, 3).weight[:, :, 0, 0]
    assert torch.equal(weight, 0.75 * torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]))
    for in_chans, slots in ((12, 3), (9, 8), (30, 20)):
        weight = MixChannels(in_chans, slots).weight[:, :, 0, 0]
        image = torch.tensor([1.0, 10, 100]).repeat(in_chans // 3)
        torch.testing.assert_close(weight @ image, torch.tensor([1.0, 10, 100]).repeat(slots // 3 + 1)[:slots])


@pytest.mark.parametrize("name", ["revbifpn_s0", "revbifpn_s1"])
@pytest.mark.parametrize("in_chans", [1, 3, 4, 12])
def test_stem_has_weights_only_where_channels_exceed_its_slots(name: str, in_chans: int) -> None:
    model = timm.create_model(name, in_chans=in_chans, num_classes=2).eval()
    slots = model.variant.stem_channels
    keys = timm.create_model(name, num_classes=2).state_dict().keys()
    assert model.state_dict().keys() - keys == ({"stem.weight"} if in_chans > slots else set())
    assert model(random_image(in_chans)).shape == (2, 2)
    assert model.in_chans == in_chans
    with pytest.raises(ValueError, match=rf"shape \(N, {in_chans}, H, W\)"):
        model(random_image(in_chans + 1))


@pytest.mark.parametrize("in_chans", [1, 4, 12])
@pytest.mark.parametrize("bf16", [False, True])
def test_all_modes_train_the_same_stem(in_chans: int, bf16: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", in_chans=in_chans, exact=True, num_classes=4).train()
    grads = []
    for reversible in (True, False):
        clone = set_reversible(copy.deepcopy(model), reversible)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(clone(random_image(in_chans)).float(), torch.tensor([1, 2]))
        loss.backward()
        grads.append({name: p.grad for name, p in clone.named_parameters()})
    assert ("stem.weight" in grads[0]) == (in_chans > 3)
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name
        assert grad.any() or not name.startswith("stem"), name


def test_stem_gets_the_smallest_step_and_may_be_frozen() -> None:
    model = timm.create_model("revbifpn_s0", in_chans=4, num_classes=3)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale[id(model.stem.weight)] == min(scale.values())
    assert len([s for s in scale.values() if s == min(scale.values())]) == 1
    model.stem.requires_grad_(False)
    model.train()(random_image(4)).sum().backward()
    assert model.stem.weight.grad is None


class TestPretrained:
    @torch.no_grad()
    def test_grey_images_are_the_rgb_models_on_stacked_ones(self, published: str) -> None:
        grey = random_image(1)
        torch.testing.assert_close(
            pretrained(published, in_chans=1)(grey), pretrained(published)(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5
        )

    @torch.no_grad()
    def test_repeated_rgb_images_are_the_rgb_models(self, published: str) -> None:
        image = random_image(3)
        model = pretrained(published, in_chans=12)
        wanted = pretrained(published)(image)
        torch.testing.assert_close(model(image.repeat(1, 4, 1, 1)), wanted, rtol=1e-4, atol=1e-5)
        features = pretrained(published, in_chans=12, features_only=True)
        level = pretrained(published, features_only=True)(image)[3]
        torch.testing.assert_close(features(image.repeat(1, 4, 1, 1))[3], level, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_repeated_rgb_images_in_slots_without_weights(self, tmp_path: Path) -> None:
        """S2 has six slots: with R, G, B, R in four channels they hold what they held in training."""
        path = str(tmp_path / "revbifpn_s2.pth.tar")
        torch.save(reference_state_dict("revbifpn_s2"), path)
        image = random_image(3, batch=1)
        model, rgb = (pretrained(path, "revbifpn_s2", in_chans=n) for n in (4, 3))
        assert torch.equal(model(torch.cat([image, image[:, :1]], 1)), rgb(image))

    def test_stems_with_weights_go_from_one_number_of_channels_to_another(self, tmp_path: Path) -> None:
        source = timm.create_model("revbifpn_s0", in_chans=6, num_classes=4).eval()
        torch.nn.init.normal_(source.stem.weight)
        save_for_hf(source, tmp_path)
        restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert restored.in_chans == 6
        state = restored.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
        doubled = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=12).eval()
        image = random_image(6)
        with torch.no_grad():
            torch.testing.assert_close(doubled(image.repeat(1, 2, 1, 1)), source(image), rtol=1e-4, atol=1e-5)
        with pytest.raises(CheckpointError, match="images of 6 channels, .* takes 3 and has none: create it with in_chans=6"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=3)

    def test_own_loader_adapts_too(self, published: str) -> None:
        model = RevBiFPN("s0", in_chans=12)
        torch.nn.init.zeros_(model.stem.weight)
        assert load_checkpoint(model, published) == []
        assert torch.equal(model.stem.weight, MixChannels(12, 3).weight)
        pyramid = RevBiFPNPyramid("s0", in_chans=4)
        assert load_checkpoint(pyramid, published, ignore=("head.",))

    def test_checkpoint_path_takes_the_published_layout(self, published: str) -> None:
        model = timm.create_model("revbifpn_s0", checkpoint_path=published)
        wanted = convert_checkpoint(reference_state_dict("revbifpn_s0"))
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
        wrapper = torch.nn.ModuleDict({"backbone": RevBiFPN("s0")})
        wrapper.load_state_dict({f"backbone.{k}": v for k, v in reference_state_dict("revbifpn_s0").items()})
        assert torch.equal(wrapper.state_dict()["backbone.head.fc.weight"], wanted["head.fc.weight"])
