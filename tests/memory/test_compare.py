"""Models side by side, and the paper's figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from revbifpn.memory import cli
from revbifpn.memory.compare import compare, paper_points, paper_subjects
from revbifpn.memory.rows import PRINTED
from revbifpn.memory.sources import Settings, find_subject


def test_rows_of_every_mode() -> None:
    subject = find_subject("tests.memory.conftest:make_tiny")
    rows = [row for row, _ in compare([subject], None, 4, (64, 64), Settings())]
    assert [row.mode for row in rows] == ["reversible", "exact", "stored"]
    assert {row.params for row in rows} == {sum(p.numel() for p in subject.build((64, 64)).parameters())}
    assert len({row.macs for row in rows}) == 1
    by_mode = {row.mode: row for row in rows}
    assert by_mode["reversible"].per_sample < by_mode["stored"].per_sample
    assert [row.mode for row, _ in compare([subject], ["stored"], 4, (64, 64), Settings())] == ["stored"]


def test_memory_per_sample_does_not_depend_on_the_batch() -> None:
    subject = find_subject("revbifpn_s0")
    small, large = (next(iter(compare([subject], ["reversible"], n, (64, 64), Settings())))[0] for n in (64, 256))
    assert large.per_sample == pytest.approx(small.per_sample, rel=0.02)


def test_printed_points() -> None:
    imagenet = {row.name: row for row in paper_points("imagenet")}
    assert len(imagenet) == 10
    assert imagenet["efficientnet_b7"].per_sample == 5.05e9
    assert imagenet["revbifpn_s6"].top1 == 84.2
    mask = {row.name: row for row in paper_points("mask-rcnn")}
    assert mask["revbifpn_s6"].per_sample == 3.7e9  # 7.4 GB are printed for two images
    assert {row.method for row in (*imagenet.values(), *mask.values())} == {PRINTED}


def test_models_of_the_papers_figures() -> None:
    subjects, batch = paper_subjects("imagenet")
    assert [s.image[0] for s in subjects if s.name in ("revbifpn_s6", "tf_efficientnet_b7")] == [352, 600]
    assert batch == 16
    pytest.importorskip("mmdet")
    detectors, batch = paper_subjects("faster-rcnn")
    assert batch == 2
    names = {d.name for d in detectors}
    assert names == {row.name for row in paper_points("faster-rcnn")}
    assert all(d.image == (800, 1344) or "revbifpn" not in d.name for d in detectors)
    assert all("mask_head" not in d.cfg.model.roi_head for d in detectors)  # type: ignore[attr-defined]


def test_the_headline() -> None:
    printed = paper_points("imagenet")
    here = [replace(row, method="predicted", peak=round(16 * row.per_sample)) for row in printed]
    text = cli._headline_ratio([*here, *printed])
    assert "20.2 times by its printed points" in text  # 5.05 / 0.25; the paper's text says 19.8
    assert "here 20.2 times per sample, 20.2 times for the whole step" in text
