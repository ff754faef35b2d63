# Dense fine-tuning after sparse pre-training (SPDF, UAI 2023): Mask R-CNN on the weights of
# revbifpn-s0-sparse50_8xb128_in1k.py. There is no mask any more: what was zero is trained from zero on, with a fresh optimizer
# and the schedule of the dense network. Another file: --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = "../mask_rcnn/mask-rcnn_revbifpn-s0_hrfpn_1x_coco.py"

model = dict(
    backbone=dict(
        init_cfg=dict(type="Pretrained", checkpoint="work_dirs/revbifpn-s0-sparse50_8xb128_in1k/epoch_450.pth"),
    ),
)
