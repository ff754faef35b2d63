_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"

model = dict(
    backbone=dict(variant="s4"),
    neck=dict(in_channels=[192, 256, 512, 1280]),
)
