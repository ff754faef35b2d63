"""Sparse training, Sparse-IFT and pruning for every timm model and for RevBiFPN; needs torch and timm only."""

from revbifpn.sparsity.selection import select_weights, selection_table

__all__ = ["select_weights", "selection_table"]
