# RevBiFPN-S1 on ImageNet-1k: 8 processes of 128 images. The paper's recipe is not known; see the base file for this one.
_base_ = "../_base_/revbifpn_in1k.py"

size = 256
model = dict(name="revbifpn_s1")
train_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
test_dataloader = val_dataloader
