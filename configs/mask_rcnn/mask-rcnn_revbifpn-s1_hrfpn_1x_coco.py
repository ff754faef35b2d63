_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s1"),
    neck=dict(in_channels=[64, 80, 160, 416]),
)
