# Mask R-CNN on RevBiFPN's body and neck, with MMDetection's HRFPN and standard heads (settings of its HRNet configs).
# A leaf config sets the variant and the neck's in_channels.
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

model = dict(
    # RevBiFPN's coarsest stride is 32, so image sides must be multiples of it: the preprocessor pads them.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0"),
    neck=dict(_delete_=True, type="HRFPN", in_channels=[48, 64, 128, 320], out_channels=256),
)
