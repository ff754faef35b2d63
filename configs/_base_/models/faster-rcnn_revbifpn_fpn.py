# Faster R-CNN on RevBiFPN with FPN in place of HRFPN; the type FPN is MMDetection's own.
_base_ = "faster-rcnn_revbifpn_hrfpn.py"

model = dict(neck=dict(_delete_=True, type="LeanFPN", in_channels=[48, 64, 128, 320], out_channels=256, num_outs=5))
