# ImageNet-1k as folders: data/imagenet/train/<class>/*.JPEG and data/imagenet/val/<class>/*.JPEG (--data names another place).
# A leaf config sets input_size. Other sources: name="hfds/..." or "torch/..." in the data sets, for timm's create_dataset.
data_root = "data/imagenet"
num_classes = 1000

train_dataloader = dict(
    batch_size=128,  # of each process
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ClassificationDataset",
        root=data_root,
        split="train",
        num_classes=num_classes,
        training=True,
        on_error="stop",  # "skip": name an image that cannot be decoded in the log, and take the next
        transform=dict(
            input_size=224,
            scale=(0.08, 1.0),
            hflip=0.5,
            color_jitter=None,
            auto_augment="rand-m9-mstd0.5",
            interpolation="random",
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type="default_collate"),
    # Every image exactly once, whatever the number of processes.
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ClassificationDataset",
        root=data_root,
        split="val",
        num_classes=num_classes,
        on_error="stop",  # "skip": leave it out of the accuracy, and say how many were
        transform=dict(input_size=224, crop_pct=0.875, interpolation="bicubic"),
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TopKAccuracy", topk=(1, 5))
test_evaluator = val_evaluator
