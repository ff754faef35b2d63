"""Sparse training, Sparse-IFT and pruning for every timm model and for RevBiFPN; needs torch and timm only."""

from revbifpn.sparsity.flops import Flops, count_flops, training_flops
from revbifpn.sparsity.ift import SparseIFT, sparse_ift
from revbifpn.sparsity.masks import MaskError
from revbifpn.sparsity.selection import select_weights, selection_table
from revbifpn.sparsity.training import SparseTraining

__all__ = [
    "Flops",
    "MaskError",
    "SparseIFT",
    "SparseTraining",
    "count_flops",
    "select_weights",
    "selection_table",
    "sparse_ift",
    "training_flops",
]
