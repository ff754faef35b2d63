# RevBiFPN-S0 on Fashion-MNIST at 64x64 (tools/make_fashion_mnist.py makes the folder): a few epochs that a CPU can do.
_base_ = "../_base_/classification_runtime.py"

data_root = "data/fashion_mnist"
num_classes = 10
epochs = 3
batch_size = 128
steps_per_epoch = -(-60_000 // batch_size)  # the last batch of an epoch is smaller
warmup = 100  # steps

model = dict(
    type="ImageClassifier",
    name="revbifpn_s0",
    num_classes=num_classes,
    model_args=dict(drop_rate=0.1),
    loss=dict(loss_type="ce", smoothing=0.1),
    data_preprocessor=dict(
        type="ImagePreprocessor", mean=(0.286,) * 3, std=(0.353,) * 3, channels_last=True, random_erasing=dict(probability=0.1)
    ),
)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ClassificationDataset",
        root=data_root,
        split="train",
        num_classes=num_classes,
        training=True,
        transform=dict(input_size=64, scale=(0.7, 1.0), hflip=0.5, color_jitter=None, interpolation="bilinear"),
    ),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ClassificationDataset",
        root=data_root,
        split="val",
        num_classes=num_classes,
        transform=dict(input_size=64, crop_pct=1.0, interpolation="bilinear"),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy", topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="adamw", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=epochs * steps_per_epoch, eta_min=1e-5),
]

custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.01, update_buffers=True),
    dict(type="ExactResumeHook"),
]
