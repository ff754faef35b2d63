_base_ = [
    "../_base_/models/fcos_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/fcos_1x.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(variant="s0"),
    neck=dict(in_channels=[48, 64, 128, 320]),
)
