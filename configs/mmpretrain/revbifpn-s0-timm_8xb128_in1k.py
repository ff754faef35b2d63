# The published classifier inside MMPretrain, by its wrapper of timm's models; pretrained=True fetches the published weights.
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "mmpretrain::_base_/default_runtime.py",
]

custom_imports = dict(imports=["revbifpn"])  # registers the models with timm
model = dict(
    type="TimmClassifier",
    model_name="revbifpn_s0",
    num_classes=1000,
    pretrained=False,
    loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
)
train_dataloader = dict(batch_size=128)
