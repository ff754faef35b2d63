# Runtime of image classification: MMEngine alone, neither mmcv nor mmdet.
_base_ = "long_training_hooks.py"

custom_imports = dict(imports=["revbifpn.training.classification", "revbifpn.training.hooks"])
default_scope = "mmengine"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),  # with the time that remains
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="accuracy/top1", rule="greater"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    dataset_epoch=dict(type="DatasetEpochHook"),
    resume_fit=dict(type="ResumeFitHook"),
)
env_cfg = dict(
    cudnn_benchmark=True,  # images have one size
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False
# A fixed seed: without one, a resumed training would see its images in another order.
randomness = dict(seed=0)
