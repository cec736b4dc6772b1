"""The children of a node as finished designs."""

from __future__ import annotations

import numba
import numpy as np

from hapi_tvm.search.rules import (
    ACCURATE,
    FASTEST,
    FRONT,
    better,
    key_of,
    within_budgets,
    within_drop,
)
from hapi_tvm.search.walk import BRANCHES, GAINED, LEFT, LOST, PAID, SIZE, ahead, child, take_front

__all__ = ["limits", "offer_children", "pointless", "promises"]


@numba.njit(cache=True, error_model="numpy")
def offer_children(bits, rules, walk, best, depth, first):
    """Offer each child of the current node that the first part of its key does not rule out at once: calling
    ``_offer`` for every one would cost more than counting it."""
    goal, samples, end_ps, most_ps, most_drop = limits(rules)
    front_ps, bar = best.front_ps, best.key
    fired, lost, gained = walk.fired[depth], walk.lost[depth], walk.gained[depth]
    branch_ps, reach_ps = bits.branch_ps, bits.reach_ps
    node = walk.node[depth]
    running, paid_ps, branches_ps, drop = samples - node[LEFT], node[PAID], node[BRANCHES], node[LOST] - node[GAINED]
    for choice in range(first, len(branch_ps)):
        worst_ps = end_ps + branches_ps + branch_ps[choice]
        total_ps = paid_ps + running * worst_ps - fired[choice] * (end_ps - reach_ps[choice])
        new_drop = drop + lost[choice] - gained[choice]
        if (
            total_ps <= most_ps
            and new_drop <= most_drop
            and promises(goal, bar, front_ps, samples, total_ps, new_drop)
            and not pointless(bits, rules, walk, depth, choice)
        ):
            _offer(bits, rules, walk, best, depth, choice)


@numba.njit(cache=True, error_model="numpy", inline="always")
def pointless(bits, rules, walk, depth, choice):
    """Whether a child breaks a limit for good, or its parent and that one's other children do all that it does."""
    parent = walk.path[depth - 1] if depth else len(bits.option)
    return (
        bits.candidate[choice] > bits.next_must[parent]
        or walk.node[depth, SIZE] + bits.size[choice] > rules.max_size
        or (walk.fired[depth, choice] == 0 and not bits.must[choice])
    )


@numba.njit(cache=True, error_model="numpy")
def _offer(bits, rules, walk, best, depth, choice):
    """A child as a finished design: whoever still runs goes to the end."""
    left, paid_ps, branches_ps, lost, gained, p95_ps, p99_ps, _, stopped_ps = child(bits, rules, walk, depth, choice)
    worst_ps = rules.end_ps + branches_ps
    total_ps = paid_ps + (rules.samples - left) * worst_ps
    p95_ps, p99_ps = min(p95_ps, worst_ps), min(p99_ps, worst_ps)
    deadline_ps = min(stopped_ps, worst_ps)
    drop = lost - gained
    key = key_of(rules, total_ps, drop, p95_ps, p99_ps, worst_ps, deadline_ps, depth + 1)
    if rules.goal == FRONT:
        if not ahead(rules, best, total_ps, drop, depth + 1):
            return
    elif not better(key, best.excess[0], best.key):
        return
    if (
        bits.next_must[choice] < rules.last_candidate
        or not within_budgets(rules, total_ps, p95_ps, p99_ps, worst_ps, deadline_ps)
        or not within_drop(rules, lost, gained)
    ):
        return
    if rules.goal == FRONT:
        take_front(rules, best, total_ps, drop, depth + 1, walk.path, choice)
        return
    best.excess[0] = key[0]
    best.key[0], best.key[1], best.key[2] = key[1], key[2], key[3]
    best.exits[0] = depth + 1
    for place in range(depth):
        best.path[place] = walk.path[place]
    best.path[depth] = choice


@numba.njit(cache=True, error_model="numpy")
def limits(rules):
    """Goal, samples, the latency of all segments, and the most latency and drop that keep the SLA; as plain
    numbers, for a loop that looks into a tuple of arrays each time is several times slower."""
    most_drop = rules.samples if rules.max_drop >= 1.0 else np.int64(rules.max_drop * rules.samples) + 1
    return rules.goal, rules.samples, rules.end_ps, rules.budgets[0], most_drop


@numba.njit(cache=True, error_model="numpy", inline="always")
def promises(goal, bar, front_ps, samples, total_ps, drop):
    """Whether a design with at least this latency and this drop can still be better than the best so far, whose
    key is ``bar``. True says nothing more."""
    if goal == FASTEST:
        return total_ps <= bar[0]
    if goal == ACCURATE:
        return drop <= bar[0]
    if goal == FRONT:
        return total_ps <= front_ps[drop + samples]
    return True
