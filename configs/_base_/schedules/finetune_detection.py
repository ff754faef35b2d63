# A short schedule for a detector on a small set: AdamW, layer-wise learning rates, warm-up and one cosine.
epochs = 20
decay = 0.75  # learning rate of a stage of the backbone by that of the stage after it
stages = 5  # of the backbone, the last at the full rate; S3 to S6 have more, which learn at the full rate too

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    # A stage is two layers of the body: RevBlocks, then silo. Necks and heads learn at the full rate.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            f"backbone.body.{layer}.": dict(lr_mult=decay ** (stages - (layer + 1) // 2)) for layer in range(1, 2 * stages + 1)
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=epochs, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
# The learning rate is for 8 images a step; --cfg-options auto_scale_lr.enable=True scales it to what you have.
auto_scale_lr = dict(base_batch_size=8, enable=False)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
