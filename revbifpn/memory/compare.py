"""A model in several modes: memory, compute and accuracy, as rows that stand beside those of other models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from revbifpn.memory.fake import UnsupportedOperatorError
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.rows import ComparisonRow
from revbifpn.memory.steps import Settings, count_macs, count_parameters, profile_subject
from revbifpn.memory.subject import Size, Subject

#: Is told what is being worked on.
Progress = Callable[[str], None]


def profile_modes(
    subject: Subject,
    modes: Sequence[str],
    batch: int,
    image: Size,
    settings: Settings,
    progress: Progress = lambda text: None,
) -> Iterator[tuple[ComparisonRow, MemoryReport]]:
    """Profile a subject in some of its modes, one after the other; its model is let go at the end.

    Args:
        modes: of the subject.
        batch: samples in each step.
        image: their height and width in pixels.
        progress: is told what is being worked on.
    """
    progress(f"{subject.name}: counting parameters and MACs")
    params = count_parameters(subject, image)
    try:
        macs = count_macs(subject, image)
    except UnsupportedOperatorError:  # a step that cannot be predicted may be measured, and goes uncounted
        macs = None
    for mode in modes:
        progress(f"{subject.name}, {mode}, batch {batch}, {image[0]}x{image[1]}")
        report = profile_subject(subject, mode, batch, image, settings)
        yield row_of(report, subject, params, macs), report
    subject.release()


def row_of(report: MemoryReport, subject: Subject, params: int, macs: float | None) -> ComparisonRow:
    """Return the report of a subject's step as a row."""
    return ComparisonRow(
        name=subject.name,
        family=subject.family,
        mode=report.mode,
        method=report.method,
        image=report.image,
        batch=report.batch,
        params=params,
        macs=macs,
        per_sample=report.per_sample,
        step_per_sample=report.peak / report.batch,
        peak=report.peak,
        top1=subject.top1,
        box_ap=subject.box_ap,
    )
