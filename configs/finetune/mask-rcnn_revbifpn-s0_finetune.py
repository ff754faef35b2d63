# Fine-tuning Mask R-CNN on a small set of your own, in COCO's format: FOLDER/train.json, FOLDER/val.json and the images.
#
#   tools/train.py configs/finetune/mask-rcnn_revbifpn-s0_finetune.py --data FOLDER
#
# Classes, and whether there are masks, are read from the files, and the files are checked first. The backbone begins with the
# published weights, the file revbifpn_s0.pth.tar (model_zoo/README.md says where it is); --cfg-options
# model.backbone.init_cfg.checkpoint=FILE takes others, those of a whole detector too, --from-scratch none. What a small set
# cannot teach is kept: the first two stages are frozen, and all norms keep the checkpoint's statistics.
_base_ = [
    "../_base_/models/mask-rcnn_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
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
