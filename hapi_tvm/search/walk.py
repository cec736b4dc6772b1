"""Where the compiled tree search stands, and the best design that it has met; changed in place by compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from hapi_tvm.search.choices import ChoiceBits
from hapi_tvm.search.rules import FRONT, NO_LIMIT, Rules

__all__ = ["Best", "Walk", "ahead", "child", "new_best", "new_walk", "take_front"]

LEFT, PAID, BRANCHES, LOST, GAINED, P95, P99, SIZE, STOPPED = range(9)
"""Columns of ``Walk.node``. Of the samples that left: how many, what they paid in all, how many of their answers
lost or gained. What all placed branches cost one sample. The percentiles if enough samples have left, else
NO_LIMIT. The size of all placed options. What the exit costs that nobody passes, else NO_LIMIT."""


class Best(NamedTuple):
    """The best design so far; one element arrays, so that compiled code can change them.

    excess: float64 [1], key: int64 [3], of ``key_of``; infinite at the start. path: int64 [K], its choices;
    exits: int64 [1], how many of them count, -1 for none. designs: int64 [1], how many were offered.
    front_ps, front_exits: int64 [2 N + 2], for FRONT: by drop + N, the least latency of a design with at most
    that drop, and its exits; front_path: int32 [2 N + 2, K], its choices where the latency changes. There,
    ``exits`` only tells that something changed.
    """

    excess: np.ndarray
    key: np.ndarray
    path: np.ndarray
    exits: np.ndarray
    designs: np.ndarray
    front_ps: np.ndarray
    front_exits: np.ndarray
    front_path: np.ndarray


class Walk(NamedTuple):
    """Where a depth-first walk stands; row d is the node with d exits on the way to it.

    depth: int64 [2], of the root and of the current node. path: int64 [K + 1]. open: int64 [K + 1, M],
    the children below which something better may lie, of which the first ``count`` count and ``at`` is the next.
    gains, losses, rests: uint64 [K + 1, words], the samples still running. node: int64 [K + 1, 9].
    fired, gained, lost: int64 [K + 1, M], of every child. save_ps, gain: int64 [K + 1, E + 1], the most that the
    exits still allowed below a child can save and gain together, by the first candidate that they may use.
    still: uint64 [words of the losses], waits: int64 [E + 1]: room for ``count_waits``.
    """

    depth: np.ndarray
    path: np.ndarray
    at: np.ndarray
    count: np.ndarray
    open: np.ndarray
    gains: np.ndarray
    losses: np.ndarray
    rests: np.ndarray
    node: np.ndarray
    fired: np.ndarray
    gained: np.ndarray
    lost: np.ndarray
    save_ps: np.ndarray
    gain: np.ndarray
    still: np.ndarray
    waits: np.ndarray


def new_best(rules: Rules) -> Best:
    drops = 2 * rules.samples + 2 if rules.goal == FRONT else 1
    most = max(rules.max_exits, 1)
    return Best(
        excess=np.full(1, np.inf),
        key=np.full(3, NO_LIMIT, dtype=np.int64),
        path=np.zeros(most, dtype=np.int64),
        exits=np.full(1, -1, dtype=np.int64),
        designs=np.zeros(1, dtype=np.int64),
        front_ps=np.full(drops, NO_LIMIT, dtype=np.int64),
        front_exits=np.full(drops, NO_LIMIT, dtype=np.int64),
        front_path=np.zeros((drops, most), dtype=np.int32),
    )


def new_walk(bits: ChoiceBits, rules: Rules) -> Walk:
    """At the empty design."""
    depths, choices = rules.max_exits + 1, len(bits.option)
    node = np.zeros((depths, 9), dtype=np.int64)
    node[:, [P95, P99, STOPPED]] = NO_LIMIT
    walk = Walk(
        depth=np.zeros(2, dtype=np.int64),
        path=np.zeros(depths, dtype=np.int64),
        at=np.zeros(depths, dtype=np.int64),
        count=np.zeros(depths, dtype=np.int64),
        open=np.zeros((depths, choices), dtype=np.int64),
        gains=np.zeros((depths, len(bits.gain_all)), dtype=np.uint64),
        losses=np.zeros((depths, len(bits.loss_all)), dtype=np.uint64),
        rests=np.zeros((depths, len(bits.rest_all)), dtype=np.uint64),
        node=node,
        fired=np.zeros((depths, choices), dtype=np.int64),
        gained=np.zeros((depths, choices), dtype=np.int64),
        lost=np.zeros((depths, choices), dtype=np.int64),
        save_ps=np.zeros((depths, rules.last_candidate + 1), dtype=np.int64),
        gain=np.zeros((depths, rules.last_candidate + 1), dtype=np.int64),
        still=np.zeros_like(bits.loss_all),
        waits=np.zeros(rules.last_candidate + 1, dtype=np.int64),
    )
    walk.gains[0], walk.losses[0], walk.rests[0] = bits.gain_all, bits.loss_all, bits.rest_all
    return walk


@numba.njit(cache=True, error_model="numpy", inline="always")
def child(bits, rules, walk, depth, choice):
    """The columns of ``Walk.node`` for a child of the node at ``depth``."""
    node, fired = walk.node[depth], walk.fired[depth, choice]
    branches_ps = node[BRANCHES] + bits.branch_ps[choice]
    cost_ps = bits.reach_ps[choice] + branches_ps
    left = node[LEFT] + fired
    return (
        left,
        node[PAID] + fired * cost_ps,
        branches_ps,
        node[LOST] + walk.lost[depth, choice],
        node[GAINED] + walk.gained[depth, choice],
        min(node[P95], cost_ps) if left >= rules.rank95 else NO_LIMIT,
        min(node[P99], cost_ps) if left >= rules.rank99 else NO_LIMIT,
        node[SIZE] + bits.size[choice],
        min(node[STOPPED], cost_ps) if bits.stops[choice] else node[STOPPED],
    )


@numba.njit(cache=True, error_model="numpy", inline="always")
def ahead(rules, best, total_ps, drop, exits):
    """Whether no design so far has at most this drop at most this latency, with no more exits."""
    at = drop + rules.samples
    if total_ps != best.front_ps[at]:
        return total_ps < best.front_ps[at]
    return exits < best.front_exits[at]


@numba.njit(cache=True, error_model="numpy")
def take_front(rules, best, total_ps, drop, exits, path, choice):
    """Enter a design into the front; its choices are path[: exits - 1] and ``choice``."""
    at = drop + rules.samples
    for place in range(exits - 1):
        best.front_path[at, place] = path[place]
    if exits:
        best.front_path[at, exits - 1] = choice
    best.exits[0] = exits
    while at < len(best.front_ps) and ahead(rules, best, total_ps, at - rules.samples, exits):
        best.front_ps[at] = total_ps
        best.front_exits[at] = exits
        at += 1
