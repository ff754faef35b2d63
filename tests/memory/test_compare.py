"""A model in several modes, as rows."""

from __future__ import annotations

import pytest

from revbifpn.memory.compare import profile_modes
from revbifpn.memory.sources import find_subject
from revbifpn.memory.steps import Settings


def test_a_row_for_every_mode() -> None:
    subject = find_subject("tests.memory.conftest:make_tiny")
    told: list[str] = []
    results = list(profile_modes(subject, subject.modes, 4, (64, 64), Settings(), told.append))
    rows = {row.mode: row for row, _ in results}
    assert list(rows) == ["reversible", "exact", "stored"]
    assert {row.params for row in rows.values()} == {sum(p.numel() for p in subject.build((64, 64)).parameters())}
    assert len({row.macs for row in rows.values()}) == 1
    assert rows["reversible"].per_sample < rows["stored"].per_sample
    assert [row.mode for row, _ in profile_modes(subject, ["stored"], 4, (64, 64), Settings())] == ["stored"]
    assert all(any(mode in text for text in told) for mode in rows)


def test_the_fields_of_a_row_are_the_reports() -> None:
    subject = find_subject("tests.memory.conftest:make_tiny")
    subject.top1, subject.box_ap = 71.0, 31.0
    ((row, report),) = profile_modes(subject, ["stored"], 4, (64, 96), Settings())
    assert (row.name, row.method, row.image, row.batch) == (subject.name, "predicted", (64, 96), 4)
    assert (row.per_sample, row.peak, row.step_per_sample) == (report.per_sample, report.peak, report.peak / 4)
    assert row.step_per_sample > row.per_sample, "weights are in the whole step alone"
    assert (row.top1, row.box_ap) == (71.0, 31.0)


def test_a_step_that_cannot_be_predicted_is_measured_without_macs() -> None:
    subject = find_subject("tests.memory.test_steps:make_value_dependent")
    ((row, _),) = profile_modes(subject, ["stored"], 2, (32, 32), Settings(optimizer=None, method="measure"))
    assert (row.method, row.macs) == ("measured", None)
    assert row.peak > 0


@pytest.mark.long
def test_memory_per_sample_hardly_depends_on_the_batch() -> None:
    subject = find_subject("revbifpn_s0")
    small, large = (next(profile_modes(subject, ["reversible"], n, (32, 32), Settings()))[0] for n in (64, 256))
    # Replays work in chunks whose size does not depend on the batch, so a sample's share of them falls.
    assert small.per_sample > large.per_sample == pytest.approx(small.per_sample, rel=0.2)
    assert large.step_per_sample < small.step_per_sample
