_base_ = [
    "../_base_/models/faster-rcnn_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_2x.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(variant="s0"),
    neck=dict(in_channels=[48, 64, 128, 320]),
)
