"""The model zoo claims what was published or predicted, and nothing else; its page is held by ``test_readme.py`` too."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from benchmarks import model_zoo
from benchmarks.model_zoo_files import NOT_HERE, PUBLISHED_COCO, write_index
from revbifpn.models import PUBLISHED, VARIANTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "model_zoo/README.md").read_text()
INDEX: dict[str, Any] = yaml.safe_load((ROOT / "model_zoo/model-index.yml").read_text())
CLASSIFIERS = {model["Name"]: model for model in INDEX["Models"] if "/imagenet/" in model["Config"]}
DETECTORS = {model["Config"]: model for model in INDEX["Models"] if "/imagenet/" not in model["Config"]}
RESULTS: dict[str, Any] = json.loads((ROOT / "benchmarks/model_zoo.json").read_text())
PAPER: dict[str, Any] = json.loads(PUBLISHED_COCO.read_text())


def metrics(model: dict[str, Any]) -> dict[str, float]:
    return {key: value for result in model.get("Results", []) for key, value in result["Metrics"].items()}


def numbers(node: Any) -> list[float]:
    if isinstance(node, dict):
        return [number for value in node.values() for number in numbers(value)]
    if isinstance(node, list):
        return [number for value in node for number in numbers(value)]
    return [node] if isinstance(node, (int, float)) else []


def test_index_is_what_the_benchmark_writes(tmp_path: Path) -> None:
    write_index(tmp_path / "model-index.yml", RESULTS)
    assert (tmp_path / "model-index.yml").read_text() == (ROOT / "model_zoo/model-index.yml").read_text()


def test_every_variant_and_every_detector_is_there() -> None:
    assert list(CLASSIFIERS) == [f"revbifpn_{name}" for name in VARIANTS]
    assert sorted(DETECTORS) == sorted(model_zoo.detector_configs())
    assert all(model["In Collection"] == INDEX["Collections"][0]["Name"] for model in INDEX["Models"])
    assert len({model["Name"] for model in INDEX["Models"]}) == len(INDEX["Models"])


@pytest.mark.parametrize("name", VARIANTS)
def test_classifiers_are_the_published_ones(name: str) -> None:
    model, published = CLASSIFIERS[f"revbifpn_{name}"], PUBLISHED[name]
    assert model["Weights"] == published.url
    assert model["Metadata"]["SHA256"] == published.sha256
    assert metrics(model) == {"Top 1 Accuracy": published.top1}
    assert model["Metadata"]["Image Size"] == VARIANTS[name].image_size
    with torch.device("meta"):
        network = timm.create_model(model["Name"])
    parameters = sum(p.numel() for p in network.parameters())
    assert model["Metadata"]["Parameters"] == parameters
    config = Config.fromfile(ROOT / model["Config"])
    assert config.model.name == model["Name"]
    memory = RESULTS[model["Name"]]["bytes_per_sample"]["reversible"]
    known = [published.top1, VARIANTS[name].image_size, parameters, round(memory / 1e9, 4)]
    assert sorted(numbers(model)) == sorted(known)


@pytest.mark.parametrize("config", sorted(DETECTORS), ids=lambda config: Path(config).stem)
def test_detectors_build_and_claim_what_was_published_or_predicted(config: str) -> None:
    model = DETECTORS[config]
    assert model["Name"] == Path(config).stem
    assert "Weights" not in model
    cfg = Config.fromfile(ROOT / config)
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        detector = MODELS.build(cfg.model)
    parameters = sum(p.numel() for p in detector.parameters())
    found = re.fullmatch(r"configs/(mask_rcnn|faster_rcnn)/.*-(s\d)_hrfpn_1x_coco.py", config)
    paper = PAPER[found[1]]["rows"].get(found[2], {}) if found else {}
    names = {"box AP": "box_ap", "mask AP": "mask_ap"}
    assert metrics(model) == {name: paper[key] for name, key in names.items() if key in paper}
    known = [*metrics(model).values(), parameters, round(RESULTS[config]["peak"] / 1e9, 2)]
    assert sorted(numbers(model)) == sorted(known)


def test_published_accuracies_name_their_source() -> None:
    for model in INDEX["Models"]:
        source = model["Metadata"].get("Source Of Accuracy", "")
        assert source.endswith("(as published, not reproduced)") == bool(metrics(model))
    rows = [line for line in README.splitlines() if re.match(r"\| (revbifpn_s|\[)", line)]
    assert len(rows) == len(INDEX["Models"])
    assert all(f"| {NOT_HERE} |" in row for row in rows)


def test_index_is_read_by_openmmlabs_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(sys.prefix) / "openmmlab")])
    reader = pytest.importorskip("modelindex.load_model_index", reason="model-index is not installed: see tools/setup.sh")
    index = reader.load(str(ROOT / "model_zoo/model-index.yml"))
    index.build_models_with_collections()
    assert [model.name for model in index.models] == [model["Name"] for model in INDEX["Models"]]
    assert index.models[0].results[0].metrics["Top 1 Accuracy"] == PUBLISHED["s0"].top1


@pytest.mark.parametrize("name", ["revbifpn_s0", "configs/faster_rcnn/faster-rcnn_revbifpn-s0_hrfpn_1x_coco.py"])
def test_figures_are_todays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tenth: smaller changes of the engine need no new files."""
    path = tmp_path / "zoo.json"
    monkeypatch.setattr(sys, "argv", ["model_zoo", "--only", name, "--json", str(path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of this process: for the tests after
    model_zoo.main()
    row = json.loads(path.read_text())[name]
    memory, claimed = (
        [*values["bytes_per_sample"].values()] if "bytes_per_sample" in values else [values["peak"]]
        for values in (row, RESULTS[name])
    )
    assert memory == pytest.approx(claimed, rel=0.1)
