"""LeanFPN, LeanRPNHead, LeanFCNMaskHead and Recomputed against MMDetection's parts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.necks import FPN
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from revbifpn.integrations.mmdet import LeanFCNMaskHead, LeanFPN, LeanRPNHead, recomputed, recomputed_class
from tests.integrations.mmdet.common import assert_same, outputs_and_gradients, same_weights, saved_bytes


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope("mmdet")


def pyramid(channels: int = 8, batch: int = 3, side: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, side >> i, side >> i, generator=generator) for i in range(4)]


def compare(plain: nn.Module, lean: nn.Module, x: list[Tensor], call: Any = None) -> None:
    call = call or (lambda module: module)
    assert_same(outputs_and_gradients(lean, x, call(lean))[0], outputs_and_gradients(plain, x, call(plain))[0])
    assert_same(outputs_and_gradients(lean, x, call(lean))[1], outputs_and_gradients(plain, x, call(plain))[1])


class TestFPN:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            dict(num_outs=4),
            dict(start_level=1, add_extra_convs="on_input"),
            dict(start_level=1, add_extra_convs="on_lateral"),
            dict(start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True, num_outs=6),
            dict(end_level=2, num_outs=3),
            dict(start_level=3, num_outs=2),
            dict(upsample_cfg=dict(scale_factor=2, mode="nearest")),
            dict(norm_cfg=dict(type="GN", num_groups=2), act_cfg=dict(type="ReLU")),
            dict(norm_cfg=dict(type="BN")),
        ],
        ids=str,
    )
    def test_values_and_gradients_are_mmdetections(self, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        options = dict(in_channels=[8] * 4, out_channels=8, num_outs=5) | options
        plain, lean = same_weights(FPN(**options), LeanFPN(**options))
        compare(plain, lean, pyramid())
        torch.testing.assert_close(lean.state_dict(), plain.state_dict())  # running statistics moved once a call

    def test_the_finest_lateral_is_not_kept(self) -> None:
        plain, lean = same_weights(*(kind([8] * 4, 8, 5) for kind in (FPN, LeanFPN)))
        x = [level.requires_grad_() for level in pyramid()]
        finest = x[0].numel() * x[0].element_size()
        assert saved_bytes(lambda: lean(x)) <= saved_bytes(lambda: plain(x)) - finest


class TestRPNHead:
    def heads(self, **options: Any) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        return same_weights(*(kind(in_channels=8, feat_channels=12, **options) for kind in (RPNHead, LeanRPNHead)))

    @pytest.mark.parametrize("num_convs", [1, 3])
    @pytest.mark.parametrize("rows", [1000, 24, 13, 1])
    def test_values_and_gradients_are_mmdetections(self, num_convs: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """In one piece, and in bands of 24 rows, 13 or 8 (as few as there are, with one convolution) of 32."""
        monkeypatch.setattr("revbifpn.integrations.mmdet.rows.BAND_ELEMENTS", rows * 12 * 3 * 32)
        plain, lean = self.heads(num_convs=num_convs)
        compare(plain, lean, pyramid())

    def test_hidden_maps_are_not_kept(self) -> None:
        plain, lean = self.heads()
        x = [level.requires_grad_() for level in pyramid()]
        hidden = sum(level.numel() // 8 * 12 * 4 for level in x)
        params = sum(p.numel() * 4 for p in plain.parameters())
        assert saved_bytes(lambda: lean(x)) <= saved_bytes(lambda: plain(x)) - hidden + params

    def test_autocast_is_the_forwards(self) -> None:
        plain, lean = self.heads()
        found = []
        for head in (lean, plain):
            x = [level.requires_grad_() for level in pyramid()]
            with torch.autocast("cpu", torch.bfloat16):
                outputs = [y for ys in head(x) for y in ys]
            assert {y.dtype for y in outputs} == {torch.bfloat16}
            head.zero_grad()
            sum(y.float().square().sum() for y in outputs).backward()  # out of autocast
            found.append([*(p.grad for p in head.parameters()), *(level.grad for level in x)])
        assert_same(*found, rtol=2e-2)  # sums over several levels are rounded to 2**-9

    def test_what_is_frozen_gets_no_gradient_and_hooks_see_one(self) -> None:
        _, lean = self.heads()
        lean.rpn_conv.weight.requires_grad_(False)
        seen: list[Tensor] = []
        lean.rpn_cls.weight.register_hook(seen.append)
        x = pyramid()[:1]  # no gradient asked for
        cls_scores, _ = lean(x)
        cls_scores[0].sum().backward()
        assert lean.rpn_conv.weight.grad is None
        assert len(seen) == 1
        assert torch.equal(seen[0], lean.rpn_cls.weight.grad)
        assert lean.rpn_reg.weight.grad is None or not lean.rpn_reg.weight.grad.any()

    def test_double_backward_is_refused(self) -> None:
        _, lean = self.heads()
        x = pyramid()[0].requires_grad_()
        (grad,) = torch.autograd.grad(lean([x])[0][0].square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


class TestMaskHead:
    OPTIONS = dict(num_convs=2, in_channels=8, conv_out_channels=12, num_classes=5)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            dict(class_agnostic=True),
            dict(num_convs=0, conv_out_channels=8),
            dict(upsample_cfg=dict(type="bilinear", scale_factor=2)),
            dict(upsample_cfg=dict(type="nearest", scale_factor=2)),
            dict(upsample_cfg=dict(type=None)),
            dict(norm_cfg=dict(type="BN")),
            dict(norm_cfg=dict(type="GN", num_groups=2)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("recompute_convs", [False, True])
    @pytest.mark.parametrize("elements", [1 << 24, 5000])
    def test_values_and_gradients_are_mmdetections(
        self, options: dict[str, Any], recompute_convs: bool, elements: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recomputed, "PART_ELEMENTS", elements)
        torch.manual_seed(0)
        options = self.OPTIONS | options
        plain, lean = same_weights(FCNMaskHead(**options), LeanFCNMaskHead(**options, recompute_convs=recompute_convs))
        compare(plain, lean, [torch.randn(7, 8, 6, 6)], lambda head: lambda x: head(x[0]))
        torch.testing.assert_close(lean.state_dict(), plain.state_dict())

    def test_no_proposals(self) -> None:
        lean = LeanFCNMaskHead(**self.OPTIONS)
        assert lean(torch.zeros(0, 8, 6, 6)).shape == (0, 5, 12, 12)

    def test_what_is_kept(self) -> None:
        """Input and convolutions' outputs, or with ``recompute_convs`` the input alone; never the upsampled maps."""
        torch.manual_seed(0)
        plain, lean, leanest = (
            FCNMaskHead(**self.OPTIONS),
            LeanFCNMaskHead(**self.OPTIONS),
            LeanFCNMaskHead(**self.OPTIONS, recompute_convs=True),
        )
        x = torch.randn(20, 8, 6, 6, requires_grad=True)
        params = sum(p.numel() * 4 for p in plain.parameters())
        small, large = 20 * 6 * 6 * 4, 20 * 12 * 12 * 4
        assert saved_bytes(lambda: plain(x)) >= small * (8 + 2 * 12) + large * 12
        assert saved_bytes(lambda: lean(x)) <= small * (8 + 2 * 12) + params
        assert saved_bytes(lambda: leanest(x)) <= small * 8 + params


class TestRecomputed:
    CASES = [
        (dict(type="FPN", in_channels=[8] * 4, out_channels=8, num_outs=5, norm_cfg=dict(type="BN")), "pyramid"),
        (dict(type="RetinaHead", num_classes=3, in_channels=8, feat_channels=8, stacked_convs=2), "pyramid"),
        (dict(type="FCOSHead", num_classes=3, in_channels=8, feat_channels=8, norm_cfg=dict(type="GN", num_groups=2),
              strides=[4, 8, 16, 32]), "pyramid"),
        (dict(type="Shared2FCBBoxHead", in_channels=8, fc_out_channels=16, roi_feat_size=4, num_classes=3), "rois"),
        (dict(type="Shared4Conv1FCBBoxHead", in_channels=8, conv_out_channels=8, fc_out_channels=16, roi_feat_size=4,
              num_classes=3, norm_cfg=dict(type="BN")), "rois"),
        (dict(type="FCNMaskHead", num_convs=2, in_channels=8, conv_out_channels=12, num_classes=3), "rois"),
    ]  # fmt: skip

    @pytest.mark.parametrize(("cfg", "inputs"), CASES, ids=[cfg["type"] for cfg, _ in CASES])
    def test_same_keys_values_gradients_and_statistics(self, cfg: dict[str, Any], inputs: str) -> None:
        torch.manual_seed(0)
        plain = MODELS.build(cfg)
        lean = MODELS.build(dict(cfg, type="Recomputed", of=cfg["type"]))
        assert isinstance(lean, type(plain))
        same_weights(plain, lean)
        x = pyramid() if inputs == "pyramid" else [torch.randn(6, 8, 4, 4)]
        call = (lambda head: head) if inputs == "pyramid" else (lambda head: lambda x: head(x[0]))
        compare(plain, lean, x, call)
        torch.testing.assert_close(lean.state_dict(), plain.state_dict())
        x = [tensor.requires_grad_() for tensor in x]
        assert saved_bytes(lambda: call(lean)(x)) < saved_bytes(lambda: call(plain)(x)) / 2

    def test_dropout_draws_the_same_numbers_again(self) -> None:
        class Dropping(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

        torch.manual_seed(0)
        plain, lean = same_weights(Dropping(), recomputed_class(Dropping)())
        found = []
        for module in (plain, lean):
            torch.manual_seed(1)
            outputs, grads = outputs_and_gradients(module, [torch.ones(4, 8)], lambda x, m=module: m(x[0]))
            found.append([*outputs, *grads])
        assert_same(*found)

    def test_copies_and_pickles(self) -> None:
        head = MODELS.build(dict(type="Recomputed", of="RPNHead", in_channels=8, feat_channels=8)).eval()
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert type(twin) is type(head)
            assert not twin.training
            with torch.no_grad():
                assert_same([y for ys in twin(pyramid()) for y in ys], [y for ys in head(pyramid()) for y in ys], rtol=0)

    def test_an_unknown_part_is_named(self) -> None:
        with pytest.raises(KeyError, match="of='NoSuchHead' is no registered part"):
            MODELS.build(dict(type="Recomputed", of="NoSuchHead"))
