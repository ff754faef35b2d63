_base_ = "mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"

# Reversal in half precision needs the exact mode: without it gradients are off by some percent.
model = dict(backbone=dict(exact=True))
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale="dynamic")
