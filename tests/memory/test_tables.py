"""Rows as tables and as CSV."""

from __future__ import annotations

import csv

from revbifpn.memory.rows import ACCURACY, PRINTED, ComparisonRow, accuracies_in
from revbifpn.memory.tables import comparison_table, to_csv, to_markdown

CLASSIFIER = ComparisonRow(
    "net", "net", "stored", "predicted", (224, 192), 16, 5_000_000, 2e9, 1.5e6, 3e6, 48_000_000, top1=80.0
)
DETECTOR = ComparisonRow("det", "det", "reversible", PRINTED, step_per_sample=2e9, box_ap=39.4)


def cells(rows: list[ComparisonRow]) -> list[dict[str, str]]:
    _, head, lines = comparison_table(rows)
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_each_accuracy_has_a_column_of_its_own() -> None:
    top1, box_ap = (f"published {ACCURACY[name]}" for name in ("top1", "box_ap"))
    classifier, detector = cells([CLASSIFIER, DETECTOR])
    assert (classifier[top1], classifier[box_ap]) == ("80.0", "-")
    assert (detector[top1], detector[box_ap]) == ("-", "39.4")
    (alone,) = cells([DETECTOR])
    assert box_ap in alone
    assert top1 not in alone


def test_sizes_and_what_is_unknown() -> None:
    classifier, detector = cells([CLASSIFIER, DETECTOR])
    assert [classifier[key] for key in ("image", "params", "GMACs", "per sample", "whole step", "batch")] == [
        "224x192",
        "5.00 M",
        "2",
        "1.5 MB",
        "48 MB",
        "16",
    ]
    assert {detector[key] for key in ("image", "params", "GMACs", "per sample", "whole step", "batch")} == {"-"}


def test_which_accuracies_there_are() -> None:
    assert accuracies_in([]) == []
    assert accuracies_in([DETECTOR]) == ["box_ap"]
    assert accuracies_in([DETECTOR, CLASSIFIER]) == ["top1", "box_ap"]
    assert accuracies_in([DETECTOR, CLASSIFIER, DETECTOR]) == ["box_ap", "top1"], "the one that most rows have is first"


def test_csv_has_a_column_for_each_field() -> None:
    first, second = csv.DictReader(to_csv([CLASSIFIER, DETECTOR]).splitlines())
    assert ",".join(first) == (
        "name,family,mode,method,height,width,batch,params,macs,per_sample,step_per_sample,peak,top1,box_ap"
    )
    assert (first["height"], first["width"], first["batch"]) == ("224", "192", "16")
    assert [float(first[name]) for name in ("per_sample", "step_per_sample", "peak", "top1")] == [1.5e6, 3e6, 48e6, 80]
    assert (second["height"], second["per_sample"], second["peak"], second["top1"]) == ("", "", "", "")
    assert (float(second["step_per_sample"]), float(second["box_ap"])) == (2e9, 39.4)


def test_bars_in_names_do_not_break_markdown() -> None:
    assert "| a\\|b | c |" in to_markdown([("Title", ["x", "y"], [["a|b", "c"]])])
