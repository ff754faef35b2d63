_base_ = [
    "../_base_/models/retinanet_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(variant="s4"),
    neck=dict(in_channels=[192, 256, 512, 1280]),
)

optim_wrapper = dict(optimizer=dict(lr=0.01))
