"""What an activation budget buys for one pass."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import nn


class Choice(NamedTuple):
    """What a pass may spend.

    Attributes:
        edges: these are stored.
        whole: the others run again for the whole batch at once, which is faster and takes more memory than in chunks.
    """

    edges: frozenset[nn.Module] = frozenset()
    whole: bool = False


#: Without a budget.
NOTHING = Choice()


class Chooses(Protocol):
    """Something that makes the choice, such as a :class:`.Budget`."""

    def choice(self, pixels: int) -> Choice:
        """The choice for a step of so many pixels, counted over the batch in the chain's first stream."""


class Always:
    """One choice for all steps."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice

    def choice(self, pixels: int) -> Choice:
        """See :class:`Chooses`."""
        return self._choice
