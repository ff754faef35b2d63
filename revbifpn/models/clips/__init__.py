"""Classification of video clips: any timm backbone, a temporal head, nominal and ordinal outputs."""

from revbifpn.models.clips.classifier import TEMPORAL, ClipClassifier
from revbifpn.models.clips.outputs import OUTPUTS, Output, make_output
from revbifpn.models.clips.shift import ShiftedMBConv, shift_couplings, shift_frames
from revbifpn.models.clips.temporal import MeanPooling, TemporalTransformer

__all__ = [
    "OUTPUTS",
    "TEMPORAL",
    "ClipClassifier",
    "MeanPooling",
    "Output",
    "ShiftedMBConv",
    "TemporalTransformer",
    "make_output",
    "shift_couplings",
    "shift_frames",
]
