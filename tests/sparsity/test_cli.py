"""The command line: report, compact, expand, time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from revbifpn.sparsity.cli import main
from revbifpn.sparsity.compact import sizes
from revbifpn.sparsity.prune import prune
from revbifpn.sparsity.report import report
from tests.sparsity.networks import small_net

SMALL = "tests.sparsity.networks:make_small_net"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network at 75%, as torch.save writes it."""
    model = small_net()
    prune(model, None, 0.75, method="magnitude")
    path = tmp_path_factory.mktemp("pruned") / "small.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_report_counts_by_hand(pruned: Path) -> None:
    found = report(pruned, SMALL, 12)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["point.weight"].flops == 2 * 24 * 16 * 6 * 6
    assert by_name["grouped.weight"].flops == 2 * 16 * 4 * 9 * 6 * 6
    assert by_name["hidden.weight"].flops == 2 * 20 * 24
    assert found.flops == sum(layer.flops or 0 for layer in found.layers)
    pruned_flops = sum(by_name[name].flops or 0 for name in ("point.weight", "grouped.weight", "hidden.weight"))
    assert found.sparse_flops == found.flops - pruned_flops * 3 // 4
    assert [layer.density for layer in found.layers if layer.density < 1] == [0.25] * 3
    assert sum(layer.weights for layer in found.layers) + found.others == sum(
        tensor.numel() for tensor in small_net().state_dict().values()
    )
    assert found.file_bytes == pruned.stat().st_size


def test_the_command_prints_the_report(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    assert main(["report", str(pruned), "--model", SMALL, "--image-size", "12", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "| point.weight | 24x16x1x1 | 384 | 96 | 0.2500 | 0.028 | 0.007 |" in text
    assert "one image of 12x12" in text
    content = json.loads(out.read_text())
    assert f"{content['sizes']['dense']:,} dense, {content['sizes']['compact']:,} compact" in text
    assert content["sparse_flops"] < content["flops"]
    assert main(["report", str(pruned)]) == 0
    assert "not known without the network: name it with --model" in capsys.readouterr().out


def test_a_revbifpn_is_found_by_its_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", num_classes=7)
    prune(model, None, "2:4", method="magnitude", dense=["*.se.*"])
    path = tmp_path / "s0.pth"
    torch.save(model.state_dict(), path)
    assert main(["report", str(path), "--image-size", "64"]) == 0
    text = capsys.readouterr().out
    assert "s0.pth, revbifpn_s0" in text
    assert "| head.fc.weight | 7x1280 | 8,960 | 8,960 | 1.0000 |" in text


def test_compact_and_expand(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compact, dense = tmp_path / "compact.safetensors", tmp_path / "dense.safetensors"
    assert main(["compact", str(pruned), str(compact)]) == 0
    state = torch.load(pruned)["state_dict"]
    assert f"{len(sizes(state).packed)} of {len(state)} tensors are compact" in capsys.readouterr().out
    assert main(["expand", str(compact), str(dense)]) == 0
    assert all(torch.equal(state[key], value) for key, value in load_file(dense).items())
    assert report(compact, SMALL, 12).layers == report(pruned, SMALL, 12).layers
    assert compact.stat().st_size < dense.stat().st_size
    assert main(["compact", str(pruned), str(compact)]) == 2
    assert "exists: choose another name" in capsys.readouterr().err


def test_time(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "12", "--repeats", "2", "--batch-size", "2"]
    assert main(["time", str(pruned), "--model", SMALL, *options]) == 0
    assert "| whole network | | |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "none.pth"], "checkpoint not found: none.pth"),
        (["report", "PRUNED", "--model", "resnet"], "timm knows no model 'resnet'"),
        (["report", "PRUNED", "--model", "tests.sparsity.networks:none"], "no such function"),
        (["report", "PRUNED", "--model", "tests.sparsity.networks:correlated"], "no such function without arguments"),
        (["report", "PRUNED", "--model", "test_resnet"], "small.pth does not fit the model"),
        (["compact", "PRUNED", "x.pth"], "x.pth must end in .safetensors"),
        (["expand", "PRUNED", "x.safetensors"], "is no .safetensors file, so it is not compact"),
        (["time", "PRUNED", "--model", "test_resnet"], "does not fit the model"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(pruned) if argument == "PRUNED" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("revbifpn-sparsity: ")
    assert error.count("\n") == 1
    assert message in error
