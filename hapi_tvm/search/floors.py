"""Below which children of a node something better may lie, and floors under what lies there.

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

import numba
import numpy as np

from hapi_tvm.search.offers import limits, pointless, promises
from hapi_tvm.search.rules import ACCURATE, FRONT, NEAREST, NO_LIMIT, better, drop_possible, key_of, within_budgets
from hapi_tvm.search.waits import count_waits, least_losses, left_behind, saved_by_losses_ps, waited_ps
from hapi_tvm.search.walk import BRANCHES, GAINED, LEFT, LOST, PAID, ahead, child

__all__ = ["floor_below", "keep_promising"]


@numba.njit(cache=True, error_model="numpy")
def keep_promising(bits, rules, walk, best, depth, first):
    """Fill ``Walk.open`` with the children whose floors in latency and drop do not rule them out at once."""
    _limit(bits, rules, walk, depth, first)
    goal, samples, all_ps, most_ps, most_drop = limits(rules)
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
            and promises(goal, bar, front_ps, samples, total_ps, least_drop)
        ):
            open_choices[count] = choice
            count += 1
    walk.count[depth] = count


@numba.njit(cache=True, error_model="numpy")
def floor_below(bits, rules, walk, best, depth, choice):
    """Whether something better may lie below a child, and a floor under all its descendants' keys."""
    none = (0.0, 0, 0, 0)
    if pointless(bits, rules, walk, depth, choice):
        return False, none
    start = bits.after[choice]
    if start == len(bits.option):
        return False, none
    left, paid_ps, branches_ps, lost, gained, p95_ps, p99_ps, _, stopped_ps = child(bits, rules, walk, depth, choice)
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
            ahead(rules, best, total_ps, drop, depth + 2)
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
    most_drop = limits(rules)[4]
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
