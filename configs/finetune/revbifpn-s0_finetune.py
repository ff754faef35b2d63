# Fine-tuning a classifier on a small set of your own: FOLDER/train/<class>/<image> and FOLDER/val/<class>/<image>.
#
#   tools/train.py configs/finetune/revbifpn-s0_finetune.py --data FOLDER
#
# begins with the published weights, the file revbifpn_s0.pth.tar (model_zoo/README.md says where it is); --cfg-options
# model.checkpoint=FILE takes others, --from-scratch none. The checkpoint's classifier has other classes: a fresh one is made,
# and the log says so. Layer decay lets the early layers, which hold most for any picture, move least; the norms keep the
# checkpoint's statistics, which a small set cannot estimate.
_base_ = ["../_base_/classification_runtime.py", "../_base_/datasets/imagenet.py"]

data_root = "data/finetune"
num_classes = None  # as many as there are class folders
epochs = 30
warmup = 3

model = dict(
    type="ImageClassifier",
    name="revbifpn_s0",
    num_classes=num_classes,
    model_args=dict(drop_rate=0.3),
    loss=dict(loss_type="ce", smoothing=0.1),
    checkpoint="revbifpn_s0.pth.tar",
    norm_eval=True,
    data_preprocessor=dict(type="ImagePreprocessor", channels_last=True, random_erasing=dict(probability=0.2, mode="pixel")),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    drop_last=False,
    dataset=dict(root=data_root, num_classes=num_classes, transform=dict(scale=(0.3, 1.0))),
)
val_dataloader = dict(batch_size=64, num_workers=4, dataset=dict(root=data_root, num_classes=num_classes))
test_dataloader = val_dataloader

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="adamw", lr=1e-3, weight_decay=0.02, layer_decay=0.8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=warmup, end=epochs, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=2e-3, update_buffers=True),
    dict(type="AverageBuffersHook"),
    dict(type="ExactResumeHook"),
]
