# Cascade Mask R-CNN on RevBiFPN's body and neck, with HRFPN and standard heads (settings of MMDetection's HRNet configs).
_base_ = "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py"

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0"),
    neck=dict(_delete_=True, type="LeanHRFPN", in_channels=[48, 64, 128, 320], out_channels=256),
    rpn_head=dict(type="LeanRPNHead"),
    roi_head=dict(mask_head=dict(type="LeanFCNMaskHead")),
)
