"""Activation budgets: the same gradients, a peak within what was asked, and choices that can be read."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from revbifpn import BudgetError, RevBiFPN, RevBiFPNPyramid, set_activation_budget
from revbifpn.reversible.budget import Budget, read_budget
from revbifpn.reversible.peak import FakeStep
from tests.networks import SMALL

SHAPE = (2, 3, 64, 64)
#: Of the planned step; 0 and 1 are reversible and stored mode.
FRACTIONS = (0.25, 0.4, 0.7)


@pytest.fixture(scope="module")
def planned() -> RevBiFPN:
    """A model with a budget of half of its activations, planned for :data:`SHAPE`; tests use copies."""
    torch.manual_seed(0)
    model = RevBiFPN(SMALL, num_classes=5, drop_rate=0.0).train()
    model.set_activation_budget(0.5, 64, 2)
    return model


def with_budget(planned: RevBiFPN, asked: float | int, **options: Any) -> RevBiFPN:
    """A copy with another budget out of the same plan."""
    model = copy.deepcopy(planned)
    assert model.body.budget is not None
    model.body.budget = replace(model.body.budget, asked=asked, _chosen={}, **options)
    return model


def plan_of(model: RevBiFPNPyramid) -> Budget:
    assert model.body.budget is not None
    return model.body.budget


def gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model(torch.randn(SHAPE)).square().sum().backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


class TestValues:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (0, 0.0),
            (1, 1.0),
            (0.3, 0.3),
            ("0.25", 0.25),
            (2_000_000, 2_000_000),
            (3e9, 3 * 10**9),
            ("2 GiB", 2**31),
            ("1.5MB", 1_500_000),
        ],
    )
    def test_fractions_and_bytes(self, value: Any, expected: float) -> None:
        assert read_budget(value) == expected
        assert type(read_budget(value)) is type(expected)

    @pytest.mark.parametrize("value", [-0.1, "-1", "much", "", float("nan"), float("inf"), None, True, [1]])
    def test_what_is_no_budget_is_named(self, value: Any) -> None:
        with pytest.raises(BudgetError, match="an activation budget is a fraction .* or a text such as '2 GiB', got"):
            read_budget(value)

    def test_the_ends_are_the_two_modes(self) -> None:
        model = RevBiFPN(SMALL, num_classes=0)
        for budget, reversible in ((1, False), (0, True)):
            assert model.set_activation_budget(budget) is None
            assert model.reversible is model.body.reversible is reversible

    def test_a_size_of_images_needs_a_batch(self) -> None:
        with pytest.raises(BudgetError, match="give both, or neither"):
            RevBiFPN(SMALL, num_classes=0).set_activation_budget(0.5, 64)

    def test_less_than_the_minimum_is_refused_with_the_minimum(self, planned: RevBiFPN) -> None:
        model = copy.deepcopy(planned)
        least = plan_of(model).peaks.highest
        with pytest.raises(BudgetError, match=r"a batch of 2 at 64x64 takes at least .* kB, a fraction of 0\.\d+ of stored"):
            model.set_activation_budget(least - 1, 64, 2)
        with pytest.raises(BudgetError, match="activation budget 0.001"):
            model.set_activation_budget(0.001, 64, 2)

    def test_more_than_stored_mode_takes_is_stored_mode(self, planned: RevBiFPN) -> None:
        model = copy.deepcopy(planned)
        model.set_activation_budget("1 GiB", 64, 2)
        assert not model.body.reversible

    def test_models_without_a_revbifpn(self) -> None:
        with pytest.raises(BudgetError, match="there is none in Linear"):
            set_activation_budget(nn.Linear(2, 2), 0.5)


class TestGradients:
    @pytest.mark.parametrize("asked", FRACTIONS)
    def test_they_are_the_same_at_every_budget(self, planned: RevBiFPN, asked: float) -> None:
        """Up to rounding in rebuilt streams: 1e-5 of a parameter's largest gradient, and 1e-6 where it is nothing else."""
        model = with_budget(planned, asked)
        assert 0 < len(plan_of(model).edges(plan_of(model).pixels)) < len(plan_of(model).candidates)
        ours, rebuilt = gradients(model), gradients(with_budget(planned, 0.0))
        for name, grad in rebuilt.items():
            assert float((ours[name] - grad).abs().max()) <= 1e-5 * float(grad.abs().max()) + 1e-6, name

    def test_in_exact_mode_they_are_equal_bit_for_bit(self, planned: RevBiFPN) -> None:
        exact, rebuilt = with_budget(planned, 0.4), with_budget(planned, 0.0)
        for model in (exact, rebuilt):
            model.body.set_exact(True)
        expected = gradients(rebuilt)
        assert all(torch.equal(grad, expected[name]) for name, grad in gradients(exact).items())

    def test_stored_edges_run_no_convolution_again(self, planned: RevBiFPN) -> None:
        """Convolutions in a whole step, of all edges' forms; with everything stored each runs once in forward."""

        def convolutions(asked: float) -> int:
            model = with_budget(planned, asked, peaks=plan_of(planned).peaks._replace(links=[0] * 7, elsewhere=0))
            with torch.profiler.profile() as profile:
                gradients(model)
            names = ("aten::convolution", "aten::linear")
            return sum(event.count for event in profile.key_averages() if event.key in names)

        counts = [convolutions(asked) for asked in (0.0, 0.4, 1.0)]
        assert counts[0] > counts[1] > counts[2]


class TestPeak:
    @pytest.mark.parametrize("asked", FRACTIONS)
    def test_it_stays_within_what_was_asked(self, planned: RevBiFPN, asked: float) -> None:
        model = with_budget(planned, asked)
        plan = plan_of(model)
        peaks = FakeStep(model, torch.empty(SHAPE)).activation_peaks(model.forward)
        assert plan.peaks.highest < peaks.highest <= plan.limit

    def test_bytes_hold_for_other_sizes_of_images(self, planned: RevBiFPN) -> None:
        """A number of bytes buys fewer edges of larger images."""
        asked = plan_of(planned).limit
        model = with_budget(planned, asked)
        small, large, huge = (len(plan_of(model).edges(pixels)) for pixels in (2 * 64 * 64, 2 * 64 * 96, 200 * 64 * 64))
        assert small > large > huge == 0
        peaks = FakeStep(model, torch.empty(2, 3, 64, 96)).activation_peaks(model.forward)
        assert peaks.highest <= asked

    def test_a_fraction_is_the_same_choice_for_all_sizes(self, planned: RevBiFPN) -> None:
        plan = plan_of(planned)
        assert plan.edges(plan.pixels) == plan.edges(9 * plan.pixels)


class TestUse:
    def test_the_first_step_plans_where_no_size_was_given(self) -> None:
        model: Any = timm.create_model("revbifpn_s0", num_classes=5, activation_budget=0.5)
        assert model.body.budget is None
        model.eval()(torch.randn(SHAPE))
        with torch.no_grad():
            model.train()(torch.randn(SHAPE))
        assert model.body.budget is None, "no step of training yet"
        before = model.state_dict()
        torch.manual_seed(3)
        model(torch.randn(SHAPE)).sum().backward()
        plan = model.body.budget
        assert plan.pixels == 2 * 64 * 64
        assert plan.edges(plan.pixels)
        assert all(param.grad is not None for param in model.parameters())
        assert before.keys() == model.state_dict().keys()

    def test_a_plan_changes_nothing_else(self) -> None:
        model = RevBiFPN(SMALL, num_classes=5).eval()
        before = copy.deepcopy(model.state_dict())
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        model.set_activation_budget(0.5, 64, 2)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert all(param.grad is None for param in model.parameters())

    def test_it_prints_as_a_table(self, planned: RevBiFPN) -> None:
        first, second, head, *rows = str(plan_of(planned)).splitlines()
        plan = plan_of(planned)
        assert first.startswith("activation budget ")
        chosen = len(plan.edges(plan.pixels))
        assert second.startswith(f"{chosen} of {len(plan.candidates)} edges stored")
        assert head.split() == ["edge", "keeps", "saves"]
        assert len(rows) == len(plan.candidates)
        assert sum(row.endswith("stored") for row in rows) == chosen
        assert any(row.split(":")[0] == "  layer 2" for row in rows)

    def test_wrappers_of_features(self) -> None:
        features: Any = timm.create_model("revbifpn_s0", features_only=True, out_indices=(2, 3))
        set_activation_budget(features, 0.5)
        loss = sum(level.mean() for level in features.train()(torch.randn(SHAPE)))
        loss.backward()
        assert features.model.body.budget is not None

    def test_a_model_with_frozen_layers(self, planned: RevBiFPN) -> None:
        model = RevBiFPN(SMALL, num_classes=5).train()
        for layer in model.stage_layers(0):
            layer.requires_grad_(False)
        plan = model.set_activation_budget(0.5, 64, 2)
        assert plan is not None
        assert len(plan.candidates) < len(plan_of(planned).candidates)
        assert set(plan.edges(plan.pixels)).isdisjoint(model.stage_layers(0)[0].modules())
        gradients(model)

    def test_layers_without_lean_forms_are_no_candidates(self) -> None:
        model = RevBiFPN(SMALL, num_classes=5).train()
        silo = model.stage_layers(1)[1]
        silo.down["0"]["1"].register_forward_hook(lambda *_: None)  # type: ignore[index,union-attr]
        plan = model.set_activation_budget(0.5, 64, 2)
        assert plan is not None
        assert {candidate.name.split(":")[0] for candidate in plan.candidates}.isdisjoint({"layer 4"})
        gradients(model)
