"""Features as timm hands them out: intermediates, pruning, wrappers, and the tracers of torch that timm uses."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import timm
import torch
from timm.models import FeatureGraphNet, FeatureHookNet, create_feature_extractor, get_graph_node_names, get_notrace_modules
from timm.models._features import FeatureGetterNet
from torch import Tensor

from revbifpn import RevBiFPN
from revbifpn.models.body import Body
from tests.reversible.common import parameter_gradients, worst_error

CHANNELS = [48, 64, 128, 320]


@pytest.fixture
def model() -> RevBiFPN:
    torch.manual_seed(0)
    return timm.create_model("revbifpn_s0", num_classes=5).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert [tuple(t.shape) for t in found] == [tuple(t.shape) for t in wanted]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("indices", "levels"),
    [(None, [0, 1, 2, 3]), (1, [3]), (3, [1, 2, 3]), ([0, 2], [0, 2]), ((-1, 1), [1, 3]), ([-4], [0]), ([2, 2, 0], [0, 2])],
)
@torch.no_grad()
def test_intermediates_by_index(model: RevBiFPN, x: Tensor, indices: object, levels: list[int]) -> None:
    pyramid = model.forward_pyramid(x)
    wanted = [pyramid[level] for level in levels]
    final, found = model.forward_intermediates(x, indices=indices)
    assert torch.equal(final, model.forward_features(x))
    assert_same(found, wanted)
    for options in ({"norm": True}, {"stop_early": True}, {"output_fmt": "NCHW"}):
        assert_same(model.forward_intermediates(x, indices=indices, intermediates_only=True, **options), wanted)


@torch.no_grad()
def test_intermediates_run_only_what_they_need(model: RevBiFPN, x: Tensor) -> None:
    ran: list[str] = []
    for name, module in model.named_modules():
        if name in {"neck.0", "neck.1", "neck.2", "neck.3", "head.final"}:
            module.register_forward_hook(lambda m, args, out, name=name: ran.append(name))
    model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    assert ran == ["neck.1", "neck.2"]


def test_wrong_intermediates_are_named(model: RevBiFPN, x: Tensor) -> None:
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(AssertionError, match=r"feature index 4 is out of range \(0 to 3\)"):
        model.forward_intermediates(x, indices=[4])
    model.prune_intermediate_layers([0, 2])
    with pytest.raises(ValueError, match=r"levels \[1\] were asked for, but pruning kept only \[0, 2\]"):
        model.forward_intermediates(x, indices=[1])


@pytest.mark.parametrize("kept", [[0], [1], [2], [3], [0, 2], [1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("mode", ["reversible", "stored", "exact"])
def test_pruned_models_keep_values_and_have_no_idle_parameters(x: Tensor, kept: list[int], mode: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", exact=mode == "exact", reversible=mode != "stored").eval()
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=kept, intermediates_only=True)
    size = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers(kept) == kept
    assert sum(p.numel() for p in model.parameters()) < size
    with torch.no_grad():
        assert_same(model.forward_intermediates(x, intermediates_only=True), wanted)
        final, found = model.forward_intermediates(x, indices=kept)
        assert_same(found, wanted)
        # Features end at the coarsest kept level, unpooled until a classifier is asked for.
        assert torch.equal(final, wanted[-1])
        assert_same([model(x)], wanted[-1:])
        assert model.num_features == model.head_hidden_size == CHANNELS[kept[-1]]
    model.train()
    sum(t.square().mean() for t in model.forward_intermediates(x, intermediates_only=True)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)


@torch.no_grad()
def test_pruning_with_the_head_kept_changes_nothing(model: RevBiFPN, x: Tensor) -> None:
    logits = model(x)
    assert model.prune_intermediate_layers([1], prune_head=False) == [1]
    assert torch.equal(model(x), logits)


@torch.no_grad()
def test_pruning_twice(model: RevBiFPN, x: Tensor) -> None:
    level = model.forward_pyramid(x)[2]
    model.prune_intermediate_layers([0, 2])
    assert model.prune_intermediate_layers(1) == [2]  # the last of those that are kept
    assert_same(model.forward_intermediates(x, intermediates_only=True), [level])
    with pytest.raises(ValueError, match=r"cannot keep the levels \[0\]: choose at least one of \(2,\)"):
        model.keep_levels([0])


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, -1), (2,), 2])
def test_features_only_carries_no_unused_weights(x: Tensor, out_indices: object) -> None:
    features = timm.create_model("revbifpn_s0", features_only=True, out_indices=out_indices).train()
    assert isinstance(features, FeatureGetterNet)
    levels = features(x)
    assert [level.shape[1] for level in levels] == features.feature_info.channels()
    assert [64 // level.shape[2] for level in levels] == features.feature_info.reduction()
    sum(level.square().mean() for level in levels).backward()
    assert not [name for name, p in features.named_parameters() if p.grad is None]
    necks = {name.split(".")[2] for name, _ in features.named_parameters() if name.startswith("model.neck.")}
    assert len(necks) == len(levels)
    assert features.in_chans == 3


@pytest.mark.parametrize("feature_cls", ["getter", "hook", "fx"])
def test_feature_wrappers_agree_and_train_reversibly(x: Tensor, feature_cls: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", drop_rate=0.0).train()
    reference = copy.deepcopy(model)
    sum(level.square().mean() for level in reference.forward_pyramid(x)).backward()
    torch.manual_seed(0)
    features = timm.create_model("revbifpn_s0", features_only=True, feature_cls=feature_cls).train()
    kind = {"getter": FeatureGetterNet, "hook": FeatureHookNet, "fx": FeatureGraphNet}[feature_cls]
    assert isinstance(features, kind)
    assert any(isinstance(m, Body) and m.reversible for m in features.modules())
    levels = features(x)
    assert [level.shape[1] for level in levels] == CHANNELS
    sum(level.square().mean() for level in levels).backward()
    ours = {".".join(name.split(".")[1:]): grad for name, grad in parameter_gradients(features).items()}
    theirs = {name: grad for name, grad in parameter_gradients(reference).items() if grad is not None}
    error, name = worst_error({name: ours[name] for name in theirs}, theirs)
    assert error < 1e-3, name  # float32 in another order of sums, of each gradient by itself; 1.2e-4 measured


@pytest.mark.parametrize("feature_cls", ["getter", "hook", "fx"])
def test_feature_wrappers_have_timms_memory_switch(x: Tensor, feature_cls: str) -> None:
    """Detection and segmentation code calls it on the wrapper; the gradients stay the same, bit for bit in exact mode."""
    grads = []
    for enable in (False, True):
        torch.manual_seed(0)
        features = timm.create_model("revbifpn_s0", features_only=True, feature_cls=feature_cls, exact=True).train()
        features.set_grad_checkpointing(enable)
        assert [m.reversible for m in features.modules() if isinstance(m, Body)] == [enable]
        sum(level.square().mean() for level in features(x)).backward()
        grads.append({name: p.grad for name, p in features.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_feature_cfg_is_merged_with_the_models_own() -> None:
    features = timm.create_model("revbifpn_s0", features_only=True, feature_cfg={"feature_cls": "fx", "out_indices": (1, 2)})
    assert isinstance(features, FeatureGraphNet)
    assert features.feature_info.channels() == CHANNELS[1:3]


@pytest.mark.parametrize("arguments", [{"feature_cls": "list"}, {"feature_cfg": {"feature_cls": "dict"}}])
def test_wrappers_that_cut_a_chain_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"feature_cls must be one of 'getter', 'hook', 'fx', got '(list|dict)'"):
        timm.create_model("revbifpn_s0", features_only=True, **arguments)


class TestTracers:
    def test_fx_takes_the_body_as_one_node(self, model: RevBiFPN, x: Tensor) -> None:
        assert Body in get_notrace_modules()
        _, eval_nodes = get_graph_node_names(model)
        assert "body" in eval_nodes
        assert {"levels.0", "levels.3", "head.steps.0.project.norm"} < set(eval_nodes)
        extractor = create_feature_extractor(model, {"levels.1": "level", "head.final": "final", eval_nodes[-1]: "logits"})
        with torch.no_grad():
            out = extractor(x)
            # The graph's neck and head run in the image's memory format, which changes the order of sums in float32.
            expected = {"level": model.forward_pyramid(x)[1], "final": model.forward_features(x), "logits": model(x)}
            for name, value in expected.items():
                torch.testing.assert_close(out[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))

    def test_fx_graph_trains(self, x: Tensor) -> None:
        torch.manual_seed(0)
        model = timm.create_model("revbifpn_s0", num_classes=3, in_chans=6).train()
        graph = create_feature_extractor(model, ["head.fc"]).train()
        graph(x.repeat(1, 2, 1, 1))["head.fc"].square().sum().backward()
        assert all(p.grad is not None for p in graph.parameters())
        assert len(list(graph.parameters())) == len(list(model.parameters()))

    def test_plain_fx_says_which_module_is_a_leaf(self, model: RevBiFPN) -> None:
        with pytest.raises(TypeError, match=r"revbifpn.models.body.Body among its leaf modules"):
            torch.fx.symbolic_trace(model)

    def test_scripts_for_any_size_without_touching_the_model(self) -> None:
        model = timm.create_model("revbifpn_s0", num_classes=3, in_chans=4, scriptable=True).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(model)
            torch.jit.save(scripted, file := io.BytesIO())
            loaded = torch.jit.load(io.BytesIO(file.getvalue()))
        assert isinstance(model.body, Body)
        with torch.no_grad():
            for program, shape in ((scripted, (1, 4, 64, 64)), (loaded, (3, 4, 32, 96))):
                image = torch.randn(shape)
                torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-5)

    def test_fx_graphs_script(self, x: Tensor) -> None:
        model = timm.create_model("revbifpn_s1", num_classes=3).eval()
        graph = create_feature_extractor(model, ["head.fc"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(graph)
        with torch.no_grad():
            torch.testing.assert_close(scripted(x)["head.fc"], model(x), rtol=1e-4, atol=1e-5)

    def test_scripts_are_for_inference(self, model: RevBiFPN) -> None:
        with pytest.raises(RuntimeError, match="call eval\\(\\) on the model first"):
            torch.jit.script(model.train())

    def test_traces_of_feature_wrappers(self, x: Tensor) -> None:
        features = timm.create_model("revbifpn_s0", features_only=True, out_indices=(1, 3)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(features, x, check_trace=False)
        other = torch.randn(1, 3, 32, 64)
        with torch.no_grad():
            for a, b in zip(traced(other), features(other), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_feature_wrappers_export(self, x: Tensor) -> None:
        features = timm.create_model("revbifpn_s0", in_chans=6, features_only=True).eval()
        x = x.repeat(1, 2, 1, 1)
        program = torch.export.export(features, (x,))
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))  # not the one that was traced
        with torch.no_grad():
            torch.testing.assert_close(program.module()(other), features(other), rtol=1e-4, atol=1e-4)
