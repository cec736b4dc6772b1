"""The compiled tree of designs: a child places one more exit behind its parent's last.

Designs that begin alike share the samples still running behind that beginning, so a child costs one pass over
their words. A node is entered once: all its children are counted, offered as designs (``offers``), and bounded
(``floors``).
"""

from __future__ import annotations

import numba

from hapi_tvm.search.floors import floor_below, keep_promising
from hapi_tvm.search.offers import offer_children
from hapi_tvm.search.popcount import count_choices
from hapi_tvm.search.walk import child

__all__ = ["explore", "floors", "place"]


@numba.njit(cache=True, error_model="numpy")
def place(bits, rules, walk, best, path):
    """Move the walk to the node of ``path`` and enter it; it becomes the walk's root."""
    walk.depth[1] = 0
    for choice in path:
        depth = walk.depth[1]
        count_choices(
            bits,
            walk.gains[depth],
            walk.losses[depth],
            walk.rests[depth],
            choice,
            choice + 1,
            walk.fired[depth],
            walk.gained[depth],
            walk.lost[depth],
        )
        _descend(bits, rules, walk, choice)
    walk.depth[0] = walk.depth[1]
    _enter(bits, rules, walk, best)


@numba.njit(cache=True, error_model="numpy")
def explore(bits, rules, walk, best, most_nodes):
    """Go on below the walk's root until nothing there can be better, or ``most_nodes`` nodes were entered.
    Returns whether all is done."""
    entered = 0
    while True:
        depth = walk.depth[1]
        if walk.at[depth] < walk.count[depth]:
            choice = walk.open[depth, walk.at[depth]]
            if floor_below(bits, rules, walk, best, depth, choice)[0]:
                if entered == most_nodes:
                    return False
                _descend(bits, rules, walk, choice)
                _enter(bits, rules, walk, best)
                entered += 1
            walk.at[depth] += 1
        elif depth == walk.depth[0]:
            return True
        else:
            walk.depth[1] = depth - 1


@numba.njit(cache=True, error_model="numpy")
def floors(bits, rules, walk, best, choices, excess, keys):
    """The children of the walk's current node below which something better may lie. Fills ``choices``: int64 [M],
    and their floors, in the form of ``key_of``, excess: float64 [M], keys: int64 [M, 3]. Returns how many."""
    depth = walk.depth[1]
    count = 0
    for choice in walk.open[depth, : walk.count[depth]]:
        may, floor = floor_below(bits, rules, walk, best, depth, choice)
        if may:
            choices[count] = choice
            excess[count] = floor[0]
            keys[count, 0], keys[count, 1], keys[count, 2] = floor[1], floor[2], floor[3]
            count += 1
    return count


@numba.njit(cache=True, error_model="numpy")
def _descend(bits, rules, walk, choice):
    """Make a child of the current node the current node. Its children are not known yet."""
    depth = walk.depth[1]
    columns = child(bits, rules, walk, depth, choice)
    for column in range(9):
        walk.node[depth + 1, column] = columns[column]
    for word in range(len(bits.gain_all)):
        walk.gains[depth + 1, word] = walk.gains[depth, word] & ~bits.gain_fire[choice, word]
    for word in range(len(bits.loss_all)):
        walk.losses[depth + 1, word] = walk.losses[depth, word] & ~bits.loss_fire[choice, word]
    for word in range(len(bits.rest_all)):
        walk.rests[depth + 1, word] = walk.rests[depth, word] & ~bits.rest_fire[choice, word]
    walk.path[depth] = choice
    walk.depth[1] = depth + 1


@numba.njit(cache=True, error_model="numpy")
def _enter(bits, rules, walk, best):
    """Count, offer and bound the children of the current node."""
    depth = walk.depth[1]
    first = bits.after[walk.path[depth - 1]] if depth else 0
    walk.at[depth] = 0
    count_choices(
        bits,
        walk.gains[depth],
        walk.losses[depth],
        walk.rests[depth],
        first,
        len(bits.option),
        walk.fired[depth],
        walk.gained[depth],
        walk.lost[depth],
    )
    best.designs[0] += len(bits.option) - first
    offer_children(bits, rules, walk, best, depth, first)
    walk.count[depth] = 0
    if depth + 1 < rules.max_exits:
        keep_promising(bits, rules, walk, best, depth, first)
