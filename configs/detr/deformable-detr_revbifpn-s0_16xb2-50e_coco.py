# Deformable DETR on RevBiFPN's levels of stride 8 to 32, which MMDetection's ChannelMapper brings to one width.
_base_ = ["mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", "../_base_/long_training_hooks.py"]

custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.training.hooks"])
default_hooks = dict(resume_fit=dict(type="ResumeFitHook"))

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0", out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 320]),
)
