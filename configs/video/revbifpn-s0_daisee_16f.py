# RevBiFPN-S0 with temporal shift on DAiSEE: four affective states of four ordered levels, 16 frames of a clip.
#
#   tools/train.py configs/video/revbifpn-s0_daisee_16f.py --data DAiSEE
#   tools/test.py configs/video/revbifpn-s0_daisee_16f.py work_dirs/revbifpn-s0_daisee_16f/best_mean_macro_f1_epoch_N.pth
#
# trains on Train, keeps the epoch with the best mean macro-F1 on Validation, and scores that one on Test. It begins with the
# published ImageNet weights (model_zoo/README.md says where they are); --from-scratch begins without. DAiSEE is handed out on
# request only, so this recipe has not been run on it.
_base_ = "../_base_/clip_runtime.py"

data_root = "data/DAiSEE"
frames = 16
size = 224
epochs = 20
warmup = 1
outputs = dict(
    Boredom=dict(levels=4, kind="corn"),  # or nominal, coral, cumulative_link
    Engagement=dict(levels=4, kind="corn"),
    Confusion=dict(levels=4, kind="corn"),
    Frustration=dict(levels=4, kind="corn"),
)

model = dict(
    type="ClipRecognizer",
    name="revbifpn_s0",
    outputs=outputs,
    temporal="shift",  # "mean" and "transformer" also take frame_chunk=..., which makes memory flat in frames
    frames=frames,
    drop_rate=0.4,
    norm_eval=True,  # the statistics of 16 frames of 8 people are those of 8 pictures
    checkpoint="revbifpn_s0.pth.tar",
    data_preprocessor=dict(type="ClipPreprocessor", channels_last=True),
)

train_dataloader = dict(
    batch_size=8,  # clips of each process
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ClipDataset",
        layout="daisee",
        root=data_root,
        split="Train",
        outputs=outputs,
        frames=frames,
        training=True,
        on_error="skip",  # names labels without a file, and clips that cannot be decoded; "stop" ends the run at the first
        transform=[
            dict(type="RandomResizedCrop", size=(size, size), scale=(0.5, 1.0), ratio=(0.9, 1.1)),
            dict(type="RandomHorizontalFlip"),
            dict(type="ColorJitter", brightness=0.2, contrast=0.2),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type="default_collate"),
    # Every clip exactly once, whatever the number of processes.
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ClipDataset",
        layout="daisee",
        root=data_root,
        split="Validation",
        outputs=outputs,
        frames=frames,
        on_error="skip",
        transform=[dict(type="Resize", size=size * 8 // 7), dict(type="CenterCrop", size=(size, size))],
    ),
)
test_dataloader = dict(val_dataloader, dataset=dict(val_dataloader["dataset"], split="Test"))

val_evaluator = dict(type="ClipMetric", outputs=outputs, merge_lowest=True)
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="adamw", lr=5e-4, weight_decay=0.02, layer_decay=0.8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=warmup, end=epochs, eta_min_ratio=1e-2, convert_to_iter_based=True),
]

custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="ClassWeightsHook", power=0.5),  # of the levels of each state, from the training split
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=2e-3, update_buffers=True),
    dict(type="AverageBuffersHook"),
    dict(type="ExactResumeHook"),
]
