"""Measure, predict and explain the memory of training steps; :func:`profile_training` does all three."""

from revbifpn.memory.fake import UnsupportedOperatorError
from revbifpn.memory.profile import profile_training
from revbifpn.memory.report import MemoryReport, TensorRecord, TimelinePoint
from revbifpn.reversible.units import format_bytes

__all__ = [
    "MemoryReport",
    "TensorRecord",
    "TimelinePoint",
    "UnsupportedOperatorError",
    "format_bytes",
    "profile_training",
]
