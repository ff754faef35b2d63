"""Published files to safetensors and back, and what is refused."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from revbifpn import RevBiFPNPyramid, convert_checkpoint
from revbifpn.models import CheckpointError, RevBiFPN
from revbifpn.models.published_layout import to_published_layout
from tests.oracle import reference_shapes, reference_state_dict

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The tool's exit status."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("model", ["revbifpn_s0", "revbifpn_s1", "revbifpn_s2", "revbifpn_s3"])
def test_keys_are_the_published_ones(model: str) -> None:
    shapes = reference_shapes(model)
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    own = convert_checkpoint(published)
    assert list(own) != list(published)
    back = to_published_layout(own)
    assert list(back) == list(published)
    assert all(back[key] is published[key] for key in published)
    assert to_published_layout(back) == back


def test_there_and_back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reference = reference_state_dict("revbifpn_s0")
    source, own, back = tmp_path / "revbifpn_s0.pth.tar", tmp_path / "new" / "s0.safetensors", tmp_path / "again.pth.tar"
    torch.save(reference, source)
    assert convert(monkeypatch, source, own) == 0
    said = capsys.readouterr().out
    assert "RevBiFPN-s0, classifier of 1000 classes" in said
    assert "this is none of the published files" in said
    assert "own layout, read back and equal" in said
    model = RevBiFPN("s0")
    model.load_state_dict(load_file(own))
    assert convert(monkeypatch, own, back, "--layout", "published") == 0
    again = torch.load(back, weights_only=True)
    assert again.keys() == reference.keys()
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in reference.items())
    assert not list(tmp_path.glob(".*"))  # no drafts


def test_a_detectors_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = RevBiFPNPyramid("s0").state_dict()
    detector = {f"backbone.{key}": value for key, value in weights.items()} | {"neck.reduction_conv.conv.bias": torch.zeros(3)}
    torch.save({"state_dict": detector, "meta": {}}, tmp_path / "epoch_12.pth")
    assert convert(monkeypatch, tmp_path / "epoch_12.pth", tmp_path / "backbone.safetensors") == 0
    assert "RevBiFPN-s0, body and neck" in capsys.readouterr().out
    assert load_file(tmp_path / "backbone.safetensors").keys() == weights.keys()


def test_published_files_are_known_by_their_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib
    from dataclasses import replace

    from revbifpn.models import PUBLISHED

    source = tmp_path / "file.pth.tar"
    torch.save(reference_state_dict("revbifpn_s1"), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "s1", replace(PUBLISHED["s1"], sha256=digest))
    assert convert(monkeypatch, source, tmp_path / "s1.safetensors") == 0
    assert "this is the published file of revbifpn_s1" in capsys.readouterr().out


class TestRefusals:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        torch.save(RevBiFPN("s0").state_dict(), tmp_path / "s0.pth")
        return tmp_path / "s0.pth"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda w: w.pop("body.1.chains.0.0.f.project.norm.bias"),
                "1 missing keys: body.1.chains.0.0.f.project.norm.bias",
            ),
            (lambda w: [w.pop(key) for key in list(w) if key.startswith("body")], "holds no weights of a RevBiFPN"),
        ],
    )
    def test_incomplete_weights(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: object, message: str
    ) -> None:
        weights = torch.load(source, weights_only=True)
        change(weights)  # type: ignore[operator]
        torch.save(weights, source)
        target = source.with_name("target.safetensors")
        assert convert(monkeypatch, source, target) == 2
        said = capsys.readouterr().err
        assert said.startswith("convert_checkpoint: ")
        assert message in said
        assert not target.exists()

    def test_a_target_that_exists(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = source.with_name("precious.safetensors")
        target.write_text("precious")
        assert convert(monkeypatch, source, target) == 2
        assert "precious.safetensors exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
        assert target.read_text() == "precious"
        assert convert(monkeypatch, source, target, "--overwrite") == 0
        assert load_file(target)

    def test_a_missing_source_and_a_wrong_suffix(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert convert(monkeypatch, tmp_path / "no.pth", tmp_path / "t.safetensors") == 2
        assert "checkpoint not found" in capsys.readouterr().err
        assert convert(monkeypatch, tmp_path / "no.pth", tmp_path / "t.onnx") == 2
        assert "must end in one of .safetensors" in capsys.readouterr().err

    def test_what_has_no_place_in_the_published_layout(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save(RevBiFPN("s0", in_chans=6).state_dict(), tmp_path / "six.pth")
        assert convert(monkeypatch, tmp_path / "six.pth", tmp_path / "own.safetensors") == 0
        assert convert(monkeypatch, tmp_path / "six.pth", tmp_path / "t.pth", "--layout", "published") == 2
        assert "the published layout has no place for 'stem.weight'" in capsys.readouterr().err

    def test_a_silo_without_some_of_its_edges(self) -> None:
        """Up edges are numbered from the coarsest stream, which down edges tell."""
        pyramid = RevBiFPNPyramid("s0")
        pyramid.keep_levels([0])
        weights = {key: value for key, value in pyramid.state_dict().items() if ".down." not in key}
        with pytest.raises(CheckpointError, match="has no place for"):
            to_published_layout(weights)
