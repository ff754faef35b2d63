# DETR on RevBiFPN's coarsest level alone.
_base_ = ["mmdet::detr/detr_r50_8xb2-150e_coco.py", "../_base_/long_training_hooks.py"]

custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.training.hooks"])
default_hooks = dict(resume_fit=dict(type="ResumeFitHook"))

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="RevBiFPN", variant="s0", out_indices=(3,)),
    neck=dict(in_channels=[320]),
)
