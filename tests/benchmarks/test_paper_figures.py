"""The paper's memory figures beside this project's: the command, its table, and its headline."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper_figures import FIGURES, headline_ratio, main, makers_of_subjects, paper_table, printed_rows
from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.rows import PRINTED, ComparisonRow


def profiled(name: str, mode: str, per_sample: float, step_per_sample: float, **fields: object) -> ComparisonRow:
    return replace(
        ComparisonRow(name, "family", mode, "predicted", (224, 224), 16, 1000, 4e9),
        per_sample=per_sample,
        step_per_sample=step_per_sample,
        **fields,  # type: ignore[arg-type]
    )


def test_printed_points_are_what_the_paper_prints() -> None:
    imagenet, faster, mask = ({row.name: row for row in printed_rows(FIGURES[name])} for name in FIGURES)
    assert [len(rows) for rows in (imagenet, faster, mask)] == [10, 11, 9]
    b7, s6 = imagenet["efficientnet_b7"], imagenet["revbifpn_s6"]
    assert (b7.step_per_sample, b7.macs, b7.top1, b7.mode) == (5.05e9, 37e9, 84.3, "stored")
    assert (s6.step_per_sample, s6.top1, s6.box_ap, s6.mode) == (0.25e9, 84.2, None, "reversible")
    assert (faster["revbifpn_s0"].step_per_sample, faster["revbifpn_s0"].macs) == (0.84e9, None)
    assert mask["revbifpn_s6"].step_per_sample == 3.7e9, "7.4 GB are printed for two images"
    assert (mask["revbifpn_s6"].box_ap, mask["revbifpn_s6"].top1) == (43.3, None)
    for row in (*imagenet.values(), *faster.values(), *mask.values()):
        assert row.method == PRINTED
        assert (row.per_sample, row.peak, row.batch) == (None, None, None), "what is not printed is not made up"


def test_models_of_the_imagenet_figure() -> None:
    subjects = {name: make() for name, make in makers_of_subjects("imagenet").items()}
    assert len(subjects) == 15
    assert (subjects["revbifpn_s6"].image, subjects["tf_efficientnet_b7"].image) == ((352, 352), (600, 600))


@pytest.mark.parametrize("figure", ["faster-rcnn", "mask-rcnn"])
def test_models_of_the_detectors_figures(figure: str) -> None:
    pytest.importorskip("mmdet")
    subjects = {name: make() for name, make in makers_of_subjects(figure).items()}
    assert set(subjects) == {point.name for point in FIGURES[figure].points}
    for point in FIGURES[figure].points:
        subject = subjects[point.name]
        assert isinstance(subject, ConfigSubject)
        assert (subject.name, subject.box_ap, subject.top1) == (point.name, point.accuracy, None)
        assert ("mask_head" in subject.cfg.model.roi_head) == (figure == "mask-rcnn")
        assert subject.image == (800, 1344) or not point.name.startswith("revbifpn")


def test_the_table_puts_the_printed_figure_beside_its_model() -> None:
    rows = [
        profiled("revbifpn_s3", "reversible", 10e6, 30e6, top1=81.1),
        profiled("revbifpn_s3", "stored", 200e6, 220e6, top1=81.1),
        profiled("tf_efficientnet_b7", "stored", 3e9, 4e9, top1=84.3),
        profiled("tf_efficientnet_b0", "stored", 90e6, 95e6),
    ]
    _, head, lines = paper_table(FIGURES["imagenet"], rows)
    s3, b7, b0 = (dict(zip(head, line, strict=True)) for line in lines)
    assert s3["model, image"] == "revbifpn_s3, 224x224"
    assert (s3["memory per sample, reversible"], s3["memory per sample, stored"]) == ("10 MB", "200 MB")
    assert (s3["whole step per sample, reversible"], s3["whole step per sample, stored"]) == ("30 MB", "220 MB")
    assert s3["printed"] == "~45 MB", "it was read off a plot"
    assert (b7["memory per sample, reversible"], b7["memory per sample, stored"], b7["printed"]) == ("-", "3 GB", "5.05 GB")
    assert b0["printed"] == "-"
    _, _, ((*_, printed),) = paper_table(FIGURES["mask-rcnn"], [profiled("revbifpn_s6", "stored", 1e9, 2e9)])
    assert printed == "3.7 GB"


def test_the_headline_takes_each_ratio_from_its_own_rows() -> None:
    """Every figure differs, so that one in another's place changes the sentence."""
    rows = [
        profiled("revbifpn_s6", "reversible", per_sample=100e6, step_per_sample=200e6),
        profiled("revbifpn_s6", "stored", per_sample=7e9, step_per_sample=11e9),
        profiled("tf_efficientnet_b7", "stored", per_sample=4e9, step_per_sample=6e9),
        profiled("tf_efficientnet_b7", "checkpointing", per_sample=1.3e9, step_per_sample=1.7e9),
    ]
    printed = printed_rows(FIGURES["imagenet"])
    text = headline_ratio([*printed, *rows])
    assert text is not None
    assert "19.8 times the memory of RevBiFPN-S6 by the paper's text, and 20.2 times by its printed points" in text
    assert "a whole step with batch 16 takes 30.0 times the memory" in text
    assert "what grows with each sample is 40.0 times as large" in text
    assert headline_ratio([*printed, *rows[:2]]) is None, "one of the two models was not profiled"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("json", "csv", "markdown", "png", "html")}
    options = [option for kind, path in files.items() for option in (f"--{kind}", str(path))]
    models = ["revbifpn_s0", "tf_efficientnet_b0"]
    assert main(["imagenet", "--models", *models, "--batch", "4", "--image-size", "64", *options]) == 0
    shown = capsys.readouterr().out
    rows = json.loads(files["json"].read_text())["comparison"]
    ours = [(row["name"], row["mode"]) for row in rows if row["method"] == "predicted"]
    assert ours == [("revbifpn_s0", "reversible"), ("revbifpn_s0", "stored"), ("tf_efficientnet_b0", "stored")]
    assert len(rows) == 3 + 10
    for row in rows[:3]:
        assert row["step_per_sample"] == row["peak"] / 4
        assert 0 < row["per_sample"] < row["step_per_sample"]
    assert len(list(csv.DictReader(files["csv"].read_text().splitlines()))) == 13
    assert "revbifpn_s0, 64x64" in shown
    assert "revbifpn_s0, 64x64" in files["markdown"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "whole step per sample" in files["html"].read_text()


def test_the_command_for_detectors(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    path = tmp_path / "figure.json"
    options = ["--batch", "1", "--image-size", "128x192", "--mode", "stored", "--json", str(path)]
    assert main(["faster-rcnn", "--models", "revbifpn_s0", "resnet101_fpn", *options]) == 0
    rows = json.loads(path.read_text())["comparison"]
    assert [(row["name"], row["mode"], row["box_ap"]) for row in rows[:2]] == [
        ("revbifpn_s0", "stored", 31.4),
        ("resnet101_fpn", "stored", 39.2),
    ]


def test_results_keep_those_of_other_figures(tmp_path: Path) -> None:
    """And detectors are profiled with their backbone checkpointed too, which is what one would do without reversal."""
    pytest.importorskip("mmdet")
    path = tmp_path / "results.json"
    assert main(["imagenet", "--models", "tf_efficientnet_b0", "--image-size", "64", "--results", str(path)]) == 0
    options = ["--batch", "1", "--image-size", "384x512", "--results", str(path)]
    assert main(["faster-rcnn", "--models", "resnet101_fpn", *options]) == 0
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["imagenet"]["rows"]] == ["tf_efficientnet_b0"], "no printed points"
    stored, checkpointed = content["faster-rcnn"]["rows"]
    assert (stored["mode"], checkpointed["mode"]) == ("stored", "checkpointing")
    assert checkpointed["per_sample"] < 0.8 * stored["per_sample"]
    assert (stored["params"], stored["macs"]) == (checkpointed["params"], checkpointed["macs"])
    assert all("torch" in figure["environment"] for figure in content.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet", "--models", "resnet50"], "'resnet50' is not in this figure: choose from revbifpn_s0, revbifpn_s1"),
        (
            ["imagenet", "--models", "revbifpn_s0", "--mode", "checkpointing"],
            "none of these models has the mode checkpointing",
        ),
        (["imagenet", "--json", "no/such/folder/x.json"], "there is no folder no/such/folder"),
    ],
)
def test_mistakes_end_with_2_and_a_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert f"paper_figures: {message}" in capsys.readouterr().err.replace("no/such/folder/x.json cannot be written: ", "")
