# RetinaNet on RevBiFPN's body and neck. Its levels have strides 8 to 128: HRFPN's convolutions have stride 2, as in
# MMDetection's FCOS with HRNet. Its towers are recomputed too with bbox_head=dict(type="Recomputed", of="RetinaHead").
_base_ = "mmdet::_base_/models/retinanet_r50_fpn.py"

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0"),
    neck=dict(_delete_=True, type="LeanHRFPN", in_channels=[48, 64, 128, 320], out_channels=256, stride=2),
)
