# RevBiFPN-S6 on ImageNet-1k: 8 processes of 128 images. The paper's recipe is not known; see the base file for this one.
_base_ = "../_base_/revbifpn_in1k.py"

size = 352
model = dict(name="revbifpn_s6", mixup=dict(mixup_alpha=0.2))  # Mixup: our choice for the large models
train_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
test_dataloader = val_dataloader
