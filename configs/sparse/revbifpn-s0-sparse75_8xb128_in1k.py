# Sparse pre-training (SPDF, UAI 2023): RevBiFPN-S0 on ImageNet-1k with 75% of its convolutions' weights at zero, at random
# places that stay. The recipe is that of the dense network, as SPDF has it. Not run on ImageNet yet.
_base_ = "../imagenet/revbifpn-s0_8xb128_in1k.py"

sparsity = dict(sparsity=0.75, method="static", distribution="uniform")
