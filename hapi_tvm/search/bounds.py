"""What no descendant of a node can beat. Every bound here is ours, and admissible.

A descendant adds exits behind the node's last. Against the node itself it saves, for each sample that
leaves there, the segments behind that exit, and it pays the added branches. So

    total(descendant) >= total(node) + running * cheapest later branch - saving

for any upper limit of the saving. Three are known, and the least counts: every running sample leaves at
the next candidate; each added exit saves what the best single one would save; every sample that fires
somewhere later leaves at the first such place (a constant of the node's last option).
"""

from __future__ import annotations

import numpy as np

from hapi_tvm.search.bitsets import ThresholdBits, count_bits
from hapi_tvm.search.objective import Figures, Objective
from hapi_tvm.search.tree import UNREACHED, Nodes, Tree

__all__ = ["Bounds"]


class Bounds:
    """Lower bounds at one threshold. Arrays by option have a last row for NONE, the empty design."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._save_ps, self._gain = _later_limits(tree, tree.bits)
        self._least_branch_ps = _least_from(tree.branch_ps)
        self._least_cost_ps = _least_from(tree.reach_ps + tree.branch_ps)
        self._most_rest_ps = np.append(tree.rest_ps, 0)

    def floor(self, nodes: Nodes, exits: int, max_exits: int) -> Figures:
        """At least this much of everything bad, at most this much of what is gained, in every descendant
        of ``nodes`` (designs of ``exits`` exits) that has at most ``max_exits``."""
        tree = self._tree
        start = tree.after[nodes.option]
        running = tree.samples - nodes.left
        more = max_exits - exits
        saving_ps = np.minimum(running * self._most_rest_ps[start], self._save_ps[nodes.option])
        saving_ps = np.minimum(saving_ps, more * np.minimum(nodes.later_save_ps, UNREACHED // max(more, 1)))
        gain = np.minimum(np.minimum(running, self._gain[nodes.option]), more * nodes.later_gain)
        soonest_ps = nodes.branches_ps + self._least_cost_ps[start]
        end_ps = tree.end_ps + nodes.branches_ps
        return Figures(
            total_ps=nodes.paid_ps + running * (end_ps + self._least_branch_ps[start]) - saving_ps,
            lost=nodes.lost,
            gained=nodes.gained + gain,
            p95_ps=np.where(nodes.p95_ps < UNREACHED, nodes.p95_ps, soonest_ps),
            p99_ps=np.where(nodes.p99_ps < UNREACHED, nodes.p99_ps, soonest_ps),
            worst_ps=end_ps + self._least_branch_ps[start],
            exits=np.full(len(nodes.option), exits + 1),
        )

    def possible(self, nodes: Nodes, floor: Figures, objective: Objective) -> np.ndarray:
        """bool [P]: whether a descendant may exist that keeps the SLA."""
        more_lost = self._tree.samples - nodes.left
        return (
            (self._tree.after[nodes.option] < self._tree.options)
            & objective.within_budgets(floor)
            & objective.drop_possible(nodes.lost, more_lost, nodes.gained, floor.gained - nodes.gained)
        )


def _later_limits(tree: Tree, bits: ThresholdBits) -> tuple[np.ndarray, np.ndarray]:
    """int64 [C + 1] twice: behind each option, what the samples that it lets pass can save if each leaves
    at the first later place where it fires, and how many of them fire right somewhere where the
    backbone is wrong."""
    passing = np.concatenate([~bits.fire, bits.everyone[None]])
    save_ps, gain = np.zeros(tree.options + 1, dtype=np.int64), np.zeros(tree.options + 1, dtype=np.int64)
    for start in np.unique(tree.after[tree.after < tree.options]):
        behind = np.flatnonzero(tree.after == start)
        fired = np.bitwise_or.accumulate(bits.fire[start:], axis=0)
        gaining = np.bitwise_or.reduce(bits.flip[start:, : bits.gain_words], axis=0)
        gain[behind] = count_bits(passing[behind, : bits.gain_words] & gaining)
        for option in behind:
            by_then = count_bits(passing[option] & fired)
            save_ps[option] = np.diff(by_then, prepend=0) @ tree.rest_ps[start:]
    return save_ps, gain


def _least_from(values: np.ndarray) -> np.ndarray:
    """[C] -> [C + 1]: the least value at or behind each index; 0 behind the last."""
    return np.append(np.minimum.accumulate(values[::-1])[::-1], 0)
