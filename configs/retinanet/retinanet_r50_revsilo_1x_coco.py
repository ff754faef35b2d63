# ResNet-50's levels, fused by reversible silos instead of FPN; more of them (num_repeats) take no more training memory.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

model = dict(neck=dict(type="RevSiloNeck", num_repeats=3))

optim_wrapper = dict(optimizer=dict(lr=0.01))
