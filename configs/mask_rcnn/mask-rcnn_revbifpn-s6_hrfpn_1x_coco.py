_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s6"),
    neck=dict(in_channels=[320, 416, 848, 2128]),
)
