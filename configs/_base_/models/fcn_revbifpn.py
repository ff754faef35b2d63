# One 1x1 FCNHead on all of RevBiFPN's levels, concatenated at the finest stride: MMSegmentation's settings for HRNet. A leaf
# config sets the variant, in_channels, their sum as channels, and the number of classes.
_base_ = "upernet_revbifpn.py"

model = dict(
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=[48, 64, 128, 320],
        in_index=(0, 1, 2, 3),
        input_transform="resize_concat",
        channels=560,
        kernel_size=1,
        num_convs=1,
        concat_input=False,
        dropout_ratio=-1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
