# MMSegmentation's runtime, and this project's hooks for long trainings. Nothing here is taken from MMSegmentation's files:
# MMEngine finds them under the name mmsegmentation alone, and the package that runs with today's torch has another.
_base_ = "long_training_hooks.py"

default_scope = "mmseg"
custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.training.hooks"])
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=8000),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
    resume_fit=dict(type="ResumeFitHook"),
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
