"""All designs at one shared threshold, as a tree: a child places one more exit behind its parent's last.

Designs that begin alike share the samples still running behind that beginning, so a child costs two
ANDs and two bit counts, for a block of parents and all their later options in one NumPy call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hapi_tvm.search.bitsets import ThresholdBits, count_bits
from hapi_tvm.search.instance import Instance
from hapi_tvm.search.objective import Figures, rank_count

__all__ = ["NONE", "Nodes", "Prefixes", "Tree"]

NONE = -1
"""As a last option: the empty design."""

UNREACHED = 2**62
"""As a percentile: too few samples have left so far."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """P designs; int64 [P] each.

    parent: row of the block that was expanded. option: the last exit placed. left: samples that left.
    paid_ps: what those paid in all. branches_ps: what all placed branches cost one sample.
    p95_ps, p99_ps: the percentile if enough samples have left, else UNREACHED. later_save_ps,
    later_gain: what any one later exit may save and gain at most, had the last one not been placed.
    """

    parent: np.ndarray
    option: np.ndarray
    left: np.ndarray
    paid_ps: np.ndarray
    branches_ps: np.ndarray
    lost: np.ndarray
    gained: np.ndarray
    p95_ps: np.ndarray
    p99_ps: np.ndarray
    later_save_ps: np.ndarray
    later_gain: np.ndarray

    def take(self, index: np.ndarray) -> Nodes:
        return Nodes(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Prefixes:
    """A designs of one size, ready to be extended.

    nodes: [A]. path: int64 [A, size], the options. running: uint64 [A, W], the samples still running.
    """

    nodes: Nodes
    path: np.ndarray
    running: np.ndarray

    def __len__(self) -> int:
        return len(self.path)

    def take(self, index: np.ndarray) -> Prefixes:
        return Prefixes(self.nodes.take(index), self.path[index], self.running[index])


class Tree:
    """The designs of ``instance`` at the threshold of ``bits``."""

    def __init__(self, instance: Instance, bits: ThresholdBits):
        self.bits = bits
        self.samples = instance.samples
        self.end_ps = instance.end_ps
        self.options = len(instance.options)
        self.reach_ps = instance.option_reach_ps
        self.rest_ps = self.end_ps - self.reach_ps
        self.branch_ps = instance.branch_ps
        self.after = np.append(instance.after, 0)  # [NONE] is 0: everything comes after the empty design
        self._rank95, self._rank99 = (rank_count(percent, self.samples) for percent in (95, 99))

    def root(self) -> Prefixes:
        """The empty design."""
        zero, unreached = np.zeros(1, dtype=np.int64), np.full(1, UNREACHED)
        everything = np.full(1, self.samples * self.end_ps)
        nodes = Nodes(
            parent=zero,
            option=np.full(1, NONE),
            left=zero,
            paid_ps=zero,
            branches_ps=zero,
            lost=zero,
            gained=zero,
            p95_ps=unreached,
            p99_ps=unreached,
            later_save_ps=everything,
            later_gain=np.full(1, self.samples),
        )
        return Prefixes(nodes, np.empty((1, 0), dtype=np.int64), self.bits.everyone[None])

    def expand(self, prefixes: Prefixes) -> Nodes:
        """Every child at which somebody leaves; a child at which nobody does is its parent made slower."""
        above = prefixes.nodes
        start = self.after[above.option]
        first = int(start.min())
        running = prefixes.running[:, None, :]
        fired = count_bits(running & self.bits.fire[first:])
        flips = running[..., : self.bits.flip.shape[1]] & self.bits.flip[first:]
        gained = count_bits(flips[..., : self.bits.gain_words])
        lost = count_bits(flips[..., self.bits.gain_words :])

        later_save_ps = _most_from(fired * self.rest_ps[first:])
        later_gain = _most_from(gained)
        parent, column = np.nonzero((fired > 0) & (np.arange(first, self.options) >= start[:, None]))
        option = column + first
        later = self.after[option] - first
        fired = fired[parent, column]
        branches_ps = above.branches_ps[parent] + self.branch_ps[option]
        cost_ps = self.reach_ps[option] + branches_ps
        left = above.left[parent] + fired
        return Nodes(
            parent=parent,
            option=option,
            left=left,
            paid_ps=above.paid_ps[parent] + fired * cost_ps,
            branches_ps=branches_ps,
            lost=above.lost[parent] + lost[parent, column],
            gained=above.gained[parent] + gained[parent, column],
            p95_ps=np.where(left >= self._rank95, np.minimum(above.p95_ps[parent], cost_ps), UNREACHED),
            p99_ps=np.where(left >= self._rank99, np.minimum(above.p99_ps[parent], cost_ps), UNREACHED),
            later_save_ps=later_save_ps[parent, later],
            later_gain=later_gain[parent, later],
        )

    def figures(self, nodes: Nodes, exits: int) -> Figures:
        """Of each node as a finished design: whoever still runs goes to the end."""
        worst_ps = self.end_ps + nodes.branches_ps
        return Figures(
            total_ps=nodes.paid_ps + (self.samples - nodes.left) * worst_ps,
            lost=nodes.lost,
            gained=nodes.gained,
            p95_ps=np.minimum(nodes.p95_ps, worst_ps),
            p99_ps=np.minimum(nodes.p99_ps, worst_ps),
            worst_ps=worst_ps,
            exits=np.full(len(nodes.option), exits),
        )

    def descend(self, prefixes: Prefixes, nodes: Nodes) -> Prefixes:
        """``nodes``, children of ``prefixes``, made ready to be extended."""
        return Prefixes(
            nodes=nodes,
            path=np.column_stack([prefixes.path[nodes.parent], nodes.option]),
            running=prefixes.running[nodes.parent] & ~self.bits.fire[nodes.option],
        )


def _most_from(values: np.ndarray) -> np.ndarray:
    """[A, C] -> [A, C + 1]: the largest value at or behind each column; 0 behind the last."""
    most = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return np.pad(most, ((0, 0), (0, 1)))
