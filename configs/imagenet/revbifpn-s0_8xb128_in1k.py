# RevBiFPN-S0 on ImageNet-1k: 8 processes of 128 images. The paper's recipe is not known; see the base file for this one.
_base_ = "../_base_/revbifpn_in1k.py"
