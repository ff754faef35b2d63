_base_ = [
    "../_base_/models/faster-rcnn_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(variant="s3"),
    neck=dict(in_channels=[128, 160, 336, 848]),
)
