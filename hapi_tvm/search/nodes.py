"""The compiled tree of designs: a child places one more exit behind its parent's last.

Designs that begin alike share the samples still running behind that beginning, so a child costs one pass over
their words. A node is entered once: all its children are counted, offered as designs, and bounded.

The bounds are ours, and admissible. A descendant adds exits behind the node's last. Against the node itself it
saves, for each sample that leaves there, the segments behind that exit, and it pays the added branches. So

    total(descendant) >= total(node) + running * cheapest later branch - saving

for any upper limit of the saving; three are known, and the least counts: every running sample leaves at the next
candidate; each added exit, at different candidates, saves what the best single one at its candidate would save
(the sum of the largest such numbers); every sample that can fire somewhere later leaves at the first such place
(a constant of the node's last choice). The same three limit the gain in right answers. Where these do not rule
a child out, ``waits`` tries: it knows what early answers cost in accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from hapi_tvm.search.choices import ChoiceBits
from hapi_tvm.search.popcount import count_choices
from hapi_tvm.search.rules import (
    ACCURATE,
    FASTEST,
    FRONT,
    NO_LIMIT,
    Rules,
    better,
    drop_possible,
    key_of,
    within_budgets,
    within_drop,
)
from hapi_tvm.search.waits import count_waits, least_losses, left_behind, saved_by_losses_ps, waited_ps

__all__ = ["Best", "Walk", "explore", "floors", "new_best", "new_walk", "place"]

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
            if _open(bits, rules, walk, best, depth, choice)[0]:
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
        may, floor = _open(bits, rules, walk, best, depth, choice)
        if may:
            choices[count] = choice
            excess[count] = floor[0]
            keys[count, 0], keys[count, 1], keys[count, 2] = floor[1], floor[2], floor[3]
            count += 1
    return count


@numba.njit(cache=True, error_model="numpy", inline="always")
def _child(bits, rules, walk, depth, choice):
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
def _pointless(bits, rules, walk, depth, choice):
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
    left, paid_ps, branches_ps, lost, gained, p95_ps, p99_ps, _, stopped_ps = _child(bits, rules, walk, depth, choice)
    worst_ps = rules.end_ps + branches_ps
    total_ps = paid_ps + (rules.samples - left) * worst_ps
    p95_ps, p99_ps = min(p95_ps, worst_ps), min(p99_ps, worst_ps)
    deadline_ps = min(stopped_ps, worst_ps)
    drop = lost - gained
    key = key_of(rules, total_ps, drop, p95_ps, p99_ps, worst_ps, deadline_ps, depth + 1)
    if rules.goal == FRONT:
        if not _ahead(rules, best, total_ps, drop, depth + 1):
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


@numba.njit(cache=True, error_model="numpy", inline="always")
def _ahead(rules, best, total_ps, drop, exits):
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
    while at < len(best.front_ps) and _ahead(rules, best, total_ps, at - rules.samples, exits):
        best.front_ps[at] = total_ps
        best.front_exits[at] = exits
        at += 1


@numba.njit(cache=True, error_model="numpy")
def _open(bits, rules, walk, best, depth, choice):
    """Whether something better may lie below a child, and a floor under all its descendants' keys."""
    none = (0.0, 0, 0, 0)
    if _pointless(bits, rules, walk, depth, choice):
        return False, none
    start = bits.after[choice]
    if start == len(bits.option):
        return False, none
    left, paid_ps, branches_ps, lost, gained, p95_ps, p99_ps, _, stopped_ps = _child(bits, rules, walk, depth, choice)
    running = rules.samples - left
    later = bits.candidate[choice] + 1
    end_ps = rules.end_ps + branches_ps
    save_ps = min(running * (rules.end_ps - bits.reach_ps[start]), bits.save_ps[choice], walk.save_ps[depth, later])
    total_ps = paid_ps + running * (end_ps + bits.least_branch_ps[start]) - save_ps
    more = min(running, bits.gain[choice], walk.gain[depth, later])
    soonest_ps = branches_ps + bits.least_cost_ps[start]
    node_p95, node_p99 = p95_ps, p99_ps
    p95_ps = p95_ps if p95_ps < NO_LIMIT else soonest_ps
    p99_ps = p99_ps if p99_ps < NO_LIMIT else soonest_ps
    worst_ps = end_ps + bits.least_branch_ps[start]
    deadline_ps = min(stopped_ps, soonest_ps)
    drop = lost - gained - more
    floor = key_of(rules, total_ps, drop, p95_ps, p99_ps, worst_ps, deadline_ps, depth + 2)
    may = (
        (
            _ahead(rules, best, total_ps, drop, depth + 2)
            if rules.goal == FRONT
            else better(floor, best.excess[0], best.key)
        )
        and within_budgets(rules, total_ps, p95_ps, p99_ps, worst_ps, deadline_ps)
        and drop_possible(rules, lost, running, gained, more)
    )
    if not may or rules.goal == FRONT:
        return may, floor
    count_waits(bits, walk.losses[depth], choice, walk.still, walk.waits)
    first = bits.candidate[start]
    here_ps = branches_ps + bits.least_branch_ps[start]
    least_ps = paid_ps + running * (here_ps + bits.place_ps[first]) + waited_ps(bits, walk.waits, first)
    most_losses = _most_drop(rules, best, lost + gained) - drop
    least = _least_losses(bits, rules, walk, first, here_ps, least_ps, node_p95, node_p99, stopped_ps)
    if least > most_losses:
        return False, floor
    if rules.goal == ACCURATE:
        drop += least
    else:
        total_ps = max(total_ps, least_ps - saved_by_losses_ps(bits, walk.waits, first, most_losses))
    floor = key_of(rules, total_ps, drop, p95_ps, p99_ps, worst_ps, deadline_ps, depth + 2)
    return better(floor, best.excess[0], best.key), floor


@numba.njit(cache=True, error_model="numpy", inline="always")
def _most_drop(rules, best, changed):
    """Above it nothing keeps the SLA, or is better. changed: answers lost or gained so far.

    With D the limit, n samples and a drop of d of them, |d| <= n D, the upper limit of ``within_drop`` is at least
    d / n + z sqrt((changed / n - D^2) / n), for what is lost or gained stays so.
    """
    most_drop = _limits(rules)[4]
    if rules.max_drop < 1.0:
        most = rules.max_drop * rules.samples
        spread = max(changed - rules.max_drop * most, 0.0)
        most_drop = np.int64(max(most - rules.z * np.sqrt(spread), -most)) + 1
    return min(most_drop, best.key[0]) if rules.goal == ACCURATE else most_drop


@numba.njit(cache=True, error_model="numpy")
def _least_losses(bits, rules, walk, first, here_ps, least_ps, p95_ps, p99_ps, stopped_ps):
    """How many of ``Walk.waits`` must be lost, at least, to keep the budgets; p95_ps, p99_ps, stopped_ps: of a
    child, as in ``Walk.node``."""
    if rules.goal == NEAREST:
        return 0
    mean, p95, p99, _, deadline = rules.budgets
    least = least_losses(bits, walk.waits, first, least_ps - mean)
    if p95_ps == NO_LIMIT:
        least = max(least, left_behind(bits, walk.waits, first, p95 - here_ps) - (rules.samples - rules.rank95))
    if p99_ps == NO_LIMIT:
        least = max(least, left_behind(bits, walk.waits, first, p99 - here_ps) - (rules.samples - rules.rank99))
    if stopped_ps == NO_LIMIT:
        least = max(least, left_behind(bits, walk.waits, first, deadline - here_ps))
    return least


@numba.njit(cache=True, error_model="numpy")
def _descend(bits, rules, walk, choice):
    """Make a child of the current node the current node. Its children are not known yet."""
    depth = walk.depth[1]
    child = _child(bits, rules, walk, depth, choice)
    for column in range(9):
        walk.node[depth + 1, column] = child[column]
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
    _offer_children(bits, rules, walk, best, depth, first)
    walk.count[depth] = 0
    if depth + 1 < rules.max_exits:
        _limit(bits, rules, walk, depth, first)
        _keep_promising(bits, rules, walk, best, depth, first)


@numba.njit(cache=True, error_model="numpy")
def _offer_children(bits, rules, walk, best, depth, first):
    """Offer each child of the current node that the first part of its key does not rule out at once: calling
    ``_offer`` for every one would cost more than counting it."""
    goal, samples, end_ps, most_ps, most_drop = _limits(rules)
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
            and _promises(goal, bar, front_ps, samples, total_ps, new_drop)
            and not _pointless(bits, rules, walk, depth, choice)
        ):
            _offer(bits, rules, walk, best, depth, choice)


@numba.njit(cache=True, error_model="numpy")
def _keep_promising(bits, rules, walk, best, depth, first):
    """Fill ``Walk.open`` with the children whose floors in latency and drop do not rule them out at once."""
    goal, samples, all_ps, most_ps, most_drop = _limits(rules)
    front_ps, bar = best.front_ps, best.key
    fired, lost, gained, open_choices = walk.fired[depth], walk.lost[depth], walk.gained[depth], walk.open[depth]
    branch_ps, reach_ps, least_branch_ps = bits.branch_ps, bits.reach_ps, bits.least_branch_ps
    candidate, after = bits.candidate, bits.after
    save_ps, gain, later_save_ps, later_gain = bits.save_ps, bits.gain, walk.save_ps[depth], walk.gain[depth]
    node = walk.node[depth]
    running, paid_ps, branches_ps, drop = samples - node[LEFT], node[PAID], node[BRANCHES], node[LOST] - node[GAINED]
    choices = len(branch_ps)
    count = 0
    for choice in range(first, choices):
        start, later = after[choice], candidate[choice] + 1
        if start == choices:
            break
        rest = running - fired[choice]
        saving_ps = min(rest * (all_ps - reach_ps[start]), save_ps[choice], later_save_ps[later])
        more = min(rest, gain[choice], later_gain[later])
        here_ps = branches_ps + branch_ps[choice]
        total_ps = (
            paid_ps
            + fired[choice] * (here_ps + reach_ps[choice])
            + rest * (here_ps + all_ps + least_branch_ps[start])
            - saving_ps
        )
        least_drop = drop + lost[choice] - gained[choice] - more
        if (
            total_ps <= most_ps
            and least_drop <= most_drop
            and _promises(goal, bar, front_ps, samples, total_ps, least_drop)
        ):
            open_choices[count] = choice
            count += 1
    walk.count[depth] = count


@numba.njit(cache=True, error_model="numpy")
def _limits(rules):
    """Goal, samples, the latency of all segments, and the most latency and drop that keep the SLA; as plain
    numbers, for a loop that looks into a tuple of arrays each time is several times slower."""
    most_drop = rules.samples if rules.max_drop >= 1.0 else np.int64(rules.max_drop * rules.samples) + 1
    return rules.goal, rules.samples, rules.end_ps, rules.budgets[0], most_drop


@numba.njit(cache=True, error_model="numpy", inline="always")
def _promises(goal, bar, front_ps, samples, total_ps, drop):
    """Whether a design with at least this latency and this drop can still be better than the best so far, whose
    key is ``bar``. True says nothing more."""
    if goal == FASTEST:
        return total_ps <= bar[0]
    if goal == ACCURATE:
        return drop <= bar[0]
    if goal == FRONT:
        return total_ps <= front_ps[drop + samples]
    return True


@numba.njit(cache=True, error_model="numpy")
def _limit(bits, rules, walk, depth, first):
    """``Walk.save_ps`` and ``Walk.gain``: for each candidate, the sums of the largest single savings and gains at
    different candidates from there on, as many as exits are still allowed below a child."""
    more = rules.max_exits - depth - 1
    saves, gains = np.zeros(more, dtype=np.int64), np.zeros(more, dtype=np.int64)
    choice = len(bits.option) - 1
    walk.save_ps[depth, rules.last_candidate] = walk.gain[depth, rules.last_candidate] = 0
    for candidate in range(rules.last_candidate - 1, -1, -1):
        save_ps = gain = 0
        while choice >= first and bits.candidate[choice] == candidate:
            save_ps = max(save_ps, walk.fired[depth, choice] * (rules.end_ps - bits.reach_ps[choice]))
            gain = max(gain, walk.gained[depth, choice])
            choice -= 1
        walk.save_ps[depth, candidate] = walk.save_ps[depth, candidate + 1] + _swap_least(saves, save_ps)
        walk.gain[depth, candidate] = walk.gain[depth, candidate + 1] + _swap_least(gains, gain)


@numba.njit(cache=True, error_model="numpy")
def _swap_least(largest, value):
    """Put ``value`` in place of the least of ``largest`` if it is larger; by how much the sum grew."""
    least = 0
    for index in range(1, len(largest)):
        if largest[index] < largest[least]:
            least = index
    grown = max(0, value - largest[least])
    largest[least] += grown
    return grown
