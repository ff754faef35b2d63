# RevBiFPN's coarsest level under MMPretrain's own pooling and linear classifier. The published weights fit its backbone; the
# published classifier, which reads all levels, is the timm model.
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "mmpretrain::_base_/default_runtime.py",
]

custom_imports = dict(imports=["revbifpn.integrations.mmdet"])
model = dict(
    type="ImageClassifier",
    backbone=dict(type="RevBiFPN", variant="s0", out_indices=(3,)),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=320,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
)
train_dataloader = dict(batch_size=128)
