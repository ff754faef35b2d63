"""torch.compile for reversible models."""

from __future__ import annotations

from typing import Any

from torch import nn

from revbifpn.reversible.additive import AdditiveLayer


def compile_edges(model: nn.Module, **options: Any) -> nn.Module:
    """Compile every edge of ``model``'s reversible layers in place, each by itself; returns ``model``.

    ``torch.compile(model)`` breaks its graph at the reversible layers and leaves the edges inside as they are; this compiles
    exactly those. Weights, state dict and modes stay the same.

    The forward pass runs an edge without graph and the backward pass with one, so the compiler builds two kernels of it,
    which need not agree in the last bit: exact mode then reports what it finds (see :class:`.ExactReversalWarning`).

    Edges of one shape share their kernels, but all edges count as recompilations of the same code: torch's limits of
    those (``torch._dynamo.config``) are raised to what the model needs, else most edges would silently not be compiled.

    Args:
        **options: for ``torch.compile``, such as ``mode`` or ``backend``; ``dynamic`` is False unless set here.
    """
    import torch._dynamo  # takes seconds, so not when this package is imported

    edges = [c.edge for layer in model.modules() if isinstance(layer, AdditiveLayer) for c in layer.couplings()]
    needed = 4 * len(edges)  # with and without graph, training and evaluation
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, needed)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, needed)
    for edge in edges:
        edge.compile(**{"dynamic": False, **options})
    return model
