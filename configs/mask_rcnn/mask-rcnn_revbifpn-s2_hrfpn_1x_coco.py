_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s2"),
    neck=dict(in_channels=[96, 128, 256, 640]),
)
