_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s3"),
    neck=dict(in_channels=[128, 160, 336, 848]),
)
