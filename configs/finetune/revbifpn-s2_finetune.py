# As revbifpn-s0_finetune.py, with S2 at 256x256.
_base_ = "revbifpn-s0_finetune.py"

size = 256
model = dict(name="revbifpn_s2", checkpoint="revbifpn_s2.pth.tar")
train_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=size)))
test_dataloader = val_dataloader
