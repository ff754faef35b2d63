# Mask R-CNN on RevBiFPN's body and neck, with HRFPN and standard heads (settings of MMDetection's HRNet configs). A leaf
# config sets the variant and the neck's in_channels. Neck and heads are lean: they have MMDetection's keys and values in less
# memory; the types HRFPN, RPNHead and FCNMaskHead are MMDetection's own.
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

model = dict(
    # RevBiFPN's coarsest stride is 32, so image sides must be multiples of it: the preprocessor pads them.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0"),
    neck=dict(_delete_=True, type="LeanHRFPN", in_channels=[48, 64, 128, 320], out_channels=256),
    rpn_head=dict(type="LeanRPNHead"),
    roi_head=dict(mask_head=dict(type="LeanFCNMaskHead")),
)
