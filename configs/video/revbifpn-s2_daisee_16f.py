# As S0's, with the pictures that S2 was trained on.
_base_ = "revbifpn-s0_daisee_16f.py"

size = 256
model = dict(name="revbifpn_s2", checkpoint="revbifpn_s2.pth.tar")
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        transform=[
            dict(type="RandomResizedCrop", size=(size, size), scale=(0.5, 1.0), ratio=(0.9, 1.1)),
            dict(type="RandomHorizontalFlip"),
            dict(type="ColorJitter", brightness=0.2, contrast=0.2),
        ]
    ),
)
transform = [dict(type="Resize", size=size * 8 // 7), dict(type="CenterCrop", size=(size, size))]
val_dataloader = dict(batch_size=4, dataset=dict(transform=transform))
test_dataloader = dict(batch_size=4, dataset=dict(transform=transform))
