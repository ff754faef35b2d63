# As mask-rcnn_revbifpn-s0_finetune.py, with Faster R-CNN: boxes only, whatever masks the files have.
_base_ = [
    "../_base_/models/faster-rcnn_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/finetune_detection.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        variant="s0",
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="revbifpn_s0.pth.tar"),
    ),
    neck=dict(in_channels=[48, 64, 128, 320]),
)
train_dataloader = dict(batch_size=8, num_workers=4)
val_dataloader = dict(batch_size=4, num_workers=4)
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="coco/bbox_mAP", rule="greater"))
