_base_ = [
    "../_base_/models/fcn_revbifpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(variant="s3"),
    decode_head=dict(in_channels=[128, 160, 336, 848], channels=1472),
)
