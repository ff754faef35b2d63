# As mask-rcnn_revbifpn-s0_finetune.py, with S2.
_base_ = "mask-rcnn_revbifpn-s0_finetune.py"

model = dict(
    backbone=dict(variant="s2", init_cfg=dict(checkpoint="revbifpn_s2.pth.tar")),
    neck=dict(in_channels=[96, 128, 256, 640]),
)
