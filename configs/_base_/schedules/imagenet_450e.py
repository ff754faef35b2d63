# timm's documented EfficientNet recipe (RMSprop as in TensorFlow, learning rate 0.016 per 256 images, weight decay 1e-5,
# 450 epochs), with warm-up and one cosine in place of its staircase.
epochs = 450
warmup = 5

optim_wrapper = dict(
    type="OptimWrapper",  # --amp makes it mixed precision
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="rmsproptf", lr=0.064, eps=1e-3, weight_decay=1e-5),
    accumulative_counts=1,  # steps whose gradients are added up; keep lr for the product of it, batch size and processes
)
# The learning rate above is for 1024 images a step; --cfg-options auto_scale_lr.enable=True scales it to what you have.
auto_scale_lr = dict(base_batch_size=1024, enable=False)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-5, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=warmup, end=epochs, eta_min_ratio=1e-3, convert_to_iter_based=True),
]

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
