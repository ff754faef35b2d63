"""K restricted Boltzmann machines over votes, one for each class, trained and compared side by side.

A machine's visible units are the workers' votes: each worker is a softmax unit of L values, and a vote that was not given
leaves its unit out, as in Salakhutdinov, Mnih and Hinton, "Restricted Boltzmann machines for collaborative filtering" (2007).
With y_m the vote of worker m, and sums over those who voted::

    p(h_j = 1 | y)   = sigmoid(b_j + sum_m W[m, y_m, j])
    p(y_m = l | h)   = softmax_l(a[m, l] + sum_j W[m, l, j] h_j)

The machines stand in one tensor, with the machine k as second axis; N items, M workers, V votes, L labels, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers that the largest intermediate tensor may have; more votes than fit are worked through in parts.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Votes:
    """Votes sorted by item.

    Attributes:
        item, worker, label: (V,) numbers.
        num_items, num_workers, num_labels: how many of them there are.
    """

    item: Tensor
    worker: Tensor
    label: Tensor
    num_items: int
    num_workers: int
    num_labels: int

    @property
    def per_item(self) -> Tensor:
        """(N,) how many votes each item has."""
        return torch.bincount(self.item, minlength=self.num_items)

    def sum_by_item(self, values: Tensor) -> Tensor:
        """(V, ...) -> (N, ...)."""
        return values.new_zeros(self.num_items, *values.shape[1:]).index_add_(0, self.item, values)

    def sum_by_worker(self, values: Tensor) -> Tensor:
        """(V, ...) -> (M, ...)."""
        return values.new_zeros(self.num_workers, *values.shape[1:]).index_add_(0, self.worker, values)

    def parts(self, numbers_per_vote: int) -> Iterator[tuple[slice, Votes]]:
        """The votes in parts of whole items, each with the place of its items among all."""
        most = max(1, CHUNK // numbers_per_vote)
        ends = self.per_item.cumsum(0)
        first = 0
        while first < self.num_items:
            begin = int(ends[first - 1]) if first else 0
            last = max(int(torch.searchsorted(ends, begin + most, right=True)), first + 1)
            votes = slice(begin, int(ends[last - 1]))
            part = Votes(
                self.item[votes] - first,
                self.worker[votes],
                self.label[votes],
                last - first,
                self.num_workers,
                self.num_labels,
            )
            yield slice(first, last), part
            first = last


@dataclass
class Machines:
    """The K machines' parameters.

    Attributes:
        a: (M, K, L) biases of the votes.
        b: (K, H) biases of the hidden units.
        w: (M, K, L, H) weights.
        smoothing: (K, L) votes that each worker is taken to have given on items of class k beside the real ones.
        decay: pulls the weights towards 0, in votes.
    """

    a: Tensor
    b: Tensor
    w: Tensor
    smoothing: Tensor
    decay: float = 0.0
    _velocity: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(
        cls, votes: Votes, responsibility: Tensor, num_hidden: int, smoothing: Tensor, decay: float, generator: torch.Generator
    ) -> Machines:
        """Machines that know how often each worker gives each label on a class, and small random weights (std 0.01).

        Args:
            responsibility: (N, K) the share of each machine in each item.
        """
        machines, workers = responsibility.shape[1], votes.num_workers
        shape = (workers, machines, votes.num_labels, num_hidden)
        weights = 0.01 * torch.randn(shape, generator=generator, dtype=responsibility.dtype)
        hidden = responsibility.new_zeros(machines, num_hidden)
        made = cls(responsibility.new_zeros(shape[:3]), hidden, weights, smoothing, decay)
        made.fit_biases(votes, responsibility)
        return made

    @property
    def _size(self) -> int:
        return self.a.shape[1] * self.a.shape[2] * max(self.w.shape[3], 1)

    def fit_biases(self, votes: Votes, responsibility: Tensor) -> None:
        """Set ``a`` to its optimum where the weights are 0: log frequencies of the votes, weighted by responsibility."""
        counts = self.a.new_zeros(votes.num_workers * votes.num_labels, self.a.shape[1])
        counts.index_add_(0, votes.worker * votes.num_labels + votes.label, responsibility[votes.item])
        counts = counts.view(votes.num_workers, votes.num_labels, -1).transpose(1, 2) + self.smoothing
        self.a = (counts / counts.sum(2, keepdim=True)).log()

    def hidden(self, votes: Votes) -> Tensor:
        """(N, K, H): p(h = 1 | y) of each item in each machine."""
        return torch.sigmoid(self.b + votes.sum_by_item(self.w[votes.worker, :, votes.label]))

    def log_votes(self, votes: Votes, hidden: Tensor) -> Tensor:
        """(V, K, L): log p(y = l | h) of each vote's worker, for the hidden units (N, K, H) of its item."""
        logits = self.a[votes.worker]
        if hidden.shape[2]:
            logits = logits + torch.einsum("vklh,vkh->vkl", self.w[votes.worker], hidden[votes.item])
        return F.log_softmax(logits, dim=2)

    def log_reconstruction(self, votes: Votes) -> Tensor:
        """(N, K): the sum over an item's votes of log p(y | h) at h = p(h | y): minus each machine's cost, times the votes."""
        parts = []
        for _, part in votes.parts(self._size):
            given = part.label[:, None, None].expand(-1, self.a.shape[1], 1)
            parts.append(part.sum_by_item(self.log_votes(part, self.hidden(part)).gather(2, given).squeeze(2)))
        return torch.cat(parts)

    def chance_of_own_class(self, votes: Votes, responsibility: Tensor) -> Tensor:
        """(M,): the probability that a worker names the right class, by the machines, in the mean of the items with a vote."""
        total = self.a.new_zeros(votes.num_workers)
        for items, part in votes.parts(self._size):
            right = self.log_votes(part, self.hidden(part)).exp().diagonal(dim1=1, dim2=2)
            total += part.sum_by_worker((right * responsibility[items][part.item]).sum(1))
        return total / torch.bincount(votes.worker, minlength=votes.num_workers)

    def contrastive_divergence(
        self, votes: Votes, responsibility: Tensor, rate: float, momentum: float, generator: torch.Generator
    ) -> None:
        """One step of CD-1 on all items, each counted in a machine by its responsibility (N, K).

        Hidden units are sampled to drive the reconstruction, which like all statistics holds probabilities (Hinton, "A
        practical guide to training restricted Boltzmann machines", 2010). What belongs to a worker is divided by how many
        votes a machine has of that worker, so that those with few votes learn at the pace of the others.
        """
        noise = torch.rand(len(responsibility), *self.b.shape, generator=generator, dtype=self.b.dtype)
        da, db, dw = torch.zeros_like(self.a), torch.zeros_like(self.b), torch.zeros_like(self.w)
        weight_of_worker = self.a.new_zeros(self.a.shape[:2])
        for items, part in votes.parts(self._size):
            share = responsibility[items]
            weight = share[part.item]
            before = self.hidden(part)
            again = self.log_votes(part, (noise[items] < before).to(before.dtype)).exp()
            # What a reconstruction tells the hidden units: the weights of its labels, by their probability.
            after = torch.sigmoid(self.b + part.sum_by_item(torch.einsum("vklh,vkl->vkh", self.w[part.worker], again)))
            given = F.one_hot(part.label, part.num_labels).to(again.dtype)[:, None] * weight[..., None]
            again = again * weight[..., None]
            da += part.sum_by_worker(given - again)
            dw += part.sum_by_worker(
                given[..., None] * before[part.item][:, :, None] - again[..., None] * after[part.item][:, :, None]
            )
            db += (share[..., None] * (before - after)).sum(0)
            weight_of_worker += part.sum_by_worker(weight)
        pseudo = self.smoothing.sum(1)
        da += self.smoothing - pseudo[:, None] * F.softmax(self.a, dim=2)
        dw -= self.decay * self.w
        per_worker = weight_of_worker + pseudo
        self._step("a", self.a, da / per_worker[..., None], rate, momentum)
        self._step("w", self.w, dw / (per_worker + self.decay)[..., None, None], rate, momentum)
        self._step("b", self.b, db / (responsibility.sum(0) + 1)[:, None], rate, momentum)

    def _step(self, name: str, parameter: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        self._velocity[name] = momentum * self._velocity.get(name, torch.zeros_like(parameter)) + rate * gradient
        parameter += self._velocity[name]
