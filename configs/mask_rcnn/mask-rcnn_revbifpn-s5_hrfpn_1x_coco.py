_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s5"),
    neck=dict(in_channels=[256, 336, 672, 1696]),
)
