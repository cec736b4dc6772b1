"""A good design early: level by level, the most promising designs and all their children."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hapi_tvm.search.choices import ChoiceBits
from hapi_tvm.search.nodes import place
from hapi_tvm.search.objective import Figures, Objective
from hapi_tvm.search.rules import NO_LIMIT, Rules
from hapi_tvm.search.walk import BRANCHES, GAINED, LEFT, LOST, P95, P99, PAID, STOPPED, Best, Walk, new_walk

__all__ = ["beam"]


def beam(
    bits: ChoiceBits,
    rules: Rules,
    objective: Objective,
    best: Best,
    width: int,
    *,
    deadline_s: float,
    clock: Callable[[], float],
) -> None:
    """Offers to ``best`` every child of the ``width`` best designs of each size, until ``deadline_s``. Best: keeps the
    accuracy limit, comes closest to the latency budgets, then the objective."""
    if not len(bits.option):
        return
    walk = new_walk(bits, rules)
    paths = [()]
    for exits in range(rules.max_exits):
        ranked = []
        for path in paths:
            if clock() >= deadline_s:
                return
            place(bits, rules, walk, best, np.array(path, dtype=np.int64))
            choices, figures = _children(bits, rules, walk, exits)
            over = np.maximum(objective.excess(figures), 1.0)
            outside = ~objective.within_drop(figures.lost, figures.gained)
            keys = [np.broadcast_to(part, outside.shape) for part in objective.key(figures)]
            order = np.lexsort((*reversed(keys), over, outside))[:width]
            for rank in order.tolist():
                merit = (bool(outside[rank]), float(over[rank]), *(key[rank].item() for key in keys))
                ranked.append((merit, (*path, int(choices[rank]))))
        paths = [path for _, path in sorted(ranked)[:width]]


def _children(bits: ChoiceBits, rules: Rules, walk: Walk, exits: int) -> tuple[np.ndarray, Figures]:
    """The children of the current node at which somebody leaves, or must be able to, as finished designs."""
    node = walk.node[exits]
    parent = walk.path[exits - 1] if exits else len(bits.option)
    first = int(bits.after[parent])
    fired = walk.fired[exits, first:]
    fits = (bits.candidate[first:] <= bits.next_must[parent]) & (fired + bits.must[first:] + bits.stops[first:] > 0)
    choices = first + np.flatnonzero(fits)
    fired = walk.fired[exits, choices]
    branches_ps = node[BRANCHES] + bits.branch_ps[choices]
    cost_ps = bits.reach_ps[choices] + branches_ps
    worst_ps = rules.end_ps + branches_ps
    left = node[LEFT] + fired
    stopped_ps = np.where(bits.stops[choices], np.minimum(node[STOPPED], cost_ps), node[STOPPED])
    p95_ps = np.where(left >= rules.rank95, np.minimum(node[P95], cost_ps), NO_LIMIT)
    p99_ps = np.where(left >= rules.rank99, np.minimum(node[P99], cost_ps), NO_LIMIT)
    return choices, Figures(
        total_ps=node[PAID] + fired * cost_ps + (rules.samples - left) * worst_ps,
        lost=node[LOST] + walk.lost[exits, choices],
        gained=node[GAINED] + walk.gained[exits, choices],
        p95_ps=np.minimum(p95_ps, worst_ps),
        p99_ps=np.minimum(p99_ps, worst_ps),
        worst_ps=worst_ps,
        deadline_ps=np.minimum(stopped_ps, worst_ps),
        exits=np.full(len(choices), exits + 1),
    )
