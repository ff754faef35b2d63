"""Reading a chain out: each stream goes through a module of its own, and nobody else sees the streams."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from revbifpn.reversible.additive import AdditiveRun, Choice, transform
from revbifpn.reversible.forms import Setting, own_dtype
from revbifpn.reversible.plain import modules_in_use
from revbifpn.reversible.plan import Coupling, Plan, Planned, Wiring
from revbifpn.reversible.streams import Streams


class ReadOut:
    """The end of a chain: ``output_k = modules[k](stream[k])``, recomputed in backward.

    It cannot be inverted, so it keeps its inputs. These are what the chain would have kept as its outputs, and since nobody
    else sees them, the backward pass works in their memory.

    Args:
        modules: for each output the stream that it is read from, and the module, which takes one tensor and returns one.
        num_streams: how many streams come in; those that no module reads end here.
        name: of what holds the modules, for messages.
    """

    def __init__(self, modules: Sequence[tuple[int, nn.Module]], num_streams: int, name: str = "ReadOut") -> None:
        self.modules = list(modules)
        self.name = name
        self.num_streams = num_streams
        self._planned: Planned[Plan] = Planned()

    def wiring(self) -> Wiring:
        """See :class:`.Wiring`: all outputs are created parts."""
        couplings = [
            Coupling(stream, self.num_streams + index, module, f"[{stream}]")
            for index, (stream, module) in enumerate(self.modules)
        ]
        outputs = [(coupling.target,) for coupling in couplings]
        return Wiring(couplings, [(stream,) for stream in range(self.num_streams)], outputs)

    def plan(self) -> Plan:
        """The plan for the modules as they are now."""
        return self._planned.get(lambda: Plan(self.wiring()), lambda plan: plan.structure)

    def is_lean(self) -> bool:
        """Whether all modules have lean forms."""
        return self.plan().lean

    def begin(self, setting: Setting, store: Choice) -> AdditiveRun:
        """Begin a pass; see :meth:`.AdditiveLayer.begin`."""
        with modules_in_use:
            return AdditiveRun(self.name, self.plan(), setting, store)

    def transform(self, streams: Streams, setting: Setting) -> Streams:
        """The outputs by ordinary operations."""

        def value_of(index: int, coupling: Coupling, source: Tensor) -> Tensor:
            value: Tensor = coupling.edge(own_dtype(coupling.edge, source, setting))
            return value

        return transform(self.name, self.wiring(), streams, value_of, None, invertible=False)

    def trains(self) -> bool:
        """Whether any parameter asks for a gradient."""
        with modules_in_use:
            return any(param.requires_grad for _, module in self.modules for param in module.parameters())
