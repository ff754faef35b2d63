# The CPU demo: RevBiFPN-S0 in Mask R-CNN, trained from scratch on the semi-synthetic digits in minutes on 2 cores.
# Against the COCO configs: 64 channels, few proposals and RoIs, small heads with BatchNorm, two RPN levels.
_base_ = [
    "../_base_/models/mask-rcnn_revbifpn_hrfpn.py",
    "../_base_/datasets/demo_digits.py",
    "../_base_/default_runtime.py",
]

channels = 64
num_classes = 5  # as many as classes in the data set's config
norm_cfg = dict(type="BN")

model = dict(
    backbone=dict(drop_path_rate=0.0),
    neck=dict(out_channels=channels, num_outs=2),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[8], ratios=[1.5], strides=[4, 8]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=[4], roi_layer=dict(output_size=7, sampling_ratio=2)),
        bbox_head=dict(
            _delete_=True,
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
            reg_class_agnostic=True,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=[4], roi_layer=dict(output_size=14, sampling_ratio=2)),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            class_agnostic=True,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)),
)

max_iters = 250
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=max_iters, eta_min=1e-5),
]

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False, window_size=10)
randomness = dict(seed=0)
