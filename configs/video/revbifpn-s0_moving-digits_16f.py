# RevBiFPN-S0 on clips whose label is in the order of their frames alone (python -m benchmarks.clips makes them), from scratch.
_base_ = "../_base_/clip_runtime.py"

data_root = "data/moving_digits"
frames = 16
epochs = 3
batch_size = 4
clips = 320
warmup = 40  # steps
outputs = dict(speed=dict(levels=4, kind="corn"))

model = dict(
    type="ClipRecognizer",
    name="revbifpn_s0",
    outputs=outputs,
    temporal="shift",
    frames=frames,
    data_preprocessor=dict(type="ClipPreprocessor", mean=(0.1,) * 3, std=(0.25,) * 3, channels_last=True),
)
loader = dict(num_workers=0, persistent_workers=False, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ClipDataset", root=data_root, split="train", outputs=outputs, frames=frames, training=True, transform=[]
    ),
    **loader,
)
val_dataloader = dict(
    batch_size=16,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(type="ClipDataset", root=data_root, split="val", outputs=outputs, frames=frames, transform=[]),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ClipMetric", outputs=outputs)
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="adamw", lr=1e-3, weight_decay=0.02),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=epochs * clips // batch_size, eta_min=1e-5),
]
custom_hooks = [dict(type="NonFiniteLossHook", action="stop"), dict(type="ExactResumeHook")]
