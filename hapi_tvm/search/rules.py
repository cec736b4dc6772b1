"""An objective in the form that compiled code reads; equal to ``Objective``, number for number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numba
import numpy as np

from hapi_tvm.search.objective import Goal, rank_count
from hapi_tvm.search.problem import Problem

__all__ = ["NO_LIMIT", "Rules", "better", "drop_possible", "key_of", "of_problem", "within_budgets", "within_drop"]

NO_LIMIT = 2**62
"""As a budget: none. As a percentile: too few samples have left so far."""

FASTEST, ACCURATE, NEAREST, FRONT = range(4)
_CODES = {Goal.FASTEST: FASTEST, Goal.ACCURATE: ACCURATE, Goal.NEAREST: NEAREST, Goal.FRONT: FRONT}
_METRICS = ("mean", "p95", "p99", "worst", "deadline")


class Rules(NamedTuple):
    """budgets, targets: int64 [5], mean (as a sum over the samples), p95, p99, worst, deadline; NO_LIMIT where none is.
    max_drop: infinity where none is. last_candidate: E, behind all candidates."""

    goal: int
    samples: int
    z: float
    max_drop: float
    budgets: np.ndarray
    targets: np.ndarray
    rank95: int
    rank99: int
    end_ps: int
    max_exits: int
    max_size: int
    last_candidate: int


def of_problem(problem: Problem) -> Rules:
    objective, samples = problem.objective, problem.instance.samples
    candidates = len(problem.instance.reach_ps) - 1
    return Rules(
        goal=_CODES[objective.goal],
        samples=samples,
        z=objective.z,
        max_drop=np.inf if objective.max_drop is None else float(objective.max_drop),
        budgets=_limits(objective.budgets_ps, samples),
        targets=_limits(objective.targets_ps, samples),
        rank95=rank_count(95, samples),
        rank99=rank_count(99, samples),
        end_ps=problem.instance.end_ps,
        max_exits=min(objective.max_exits, candidates),
        max_size=NO_LIMIT if problem.space.max_bytes is None else problem.space.max_bytes,
        last_candidate=candidates,
    )


def _limits(limits_ps: Mapping[str, int], samples: int) -> np.ndarray:
    times = {"mean": samples}
    each = [limits_ps.get(metric, NO_LIMIT) * times.get(metric, 1) for metric in _METRICS]
    return np.array([min(limit_ps, NO_LIMIT) for limit_ps in each], dtype=np.int64)


@numba.njit(cache=True, error_model="numpy", inline="always")
def within_drop(rules, lost, gained):
    drop = (lost - gained) / rules.samples
    if drop > rules.max_drop:
        return False
    if rules.z == 0.0 or rules.max_drop == np.inf:
        return True
    variance = max((lost + gained) / rules.samples - drop * drop, 0.0)
    return drop + rules.z * np.sqrt(variance / rules.samples) <= rules.max_drop


@numba.njit(cache=True, error_model="numpy", inline="always")
def drop_possible(rules, lost, more_lost, gained, more_gained):
    """As ``Objective.drop_possible``; the likeliest corner first."""
    return (
        within_drop(rules, lost, gained + more_gained)
        or within_drop(rules, lost, gained)
        or within_drop(rules, lost + more_lost, gained + more_gained)
        or within_drop(rules, lost + more_lost, gained)
    )


@numba.njit(cache=True, error_model="numpy", inline="always")
def within_budgets(rules, total_ps, p95_ps, p99_ps, worst_ps, deadline_ps):
    budgets = rules.budgets
    return (
        total_ps <= budgets[0]
        and p95_ps <= budgets[1]
        and p99_ps <= budgets[2]
        and worst_ps <= budgets[3]
        and deadline_ps <= budgets[4]
    )


@numba.njit(cache=True, error_model="numpy", inline="always")
def key_of(rules, total_ps, drop, p95_ps, p99_ps, worst_ps, deadline_ps, exits):
    """(float, int, int, int), less is better: ``Objective.key`` with a constant in front or within. FRONT is ranked
    by latency."""
    if rules.goal == ACCURATE:
        return 0.0, drop, total_ps, exits
    if rules.goal != NEAREST:
        return 0.0, total_ps, drop, exits
    excess = 0.0
    spent = (total_ps, p95_ps, p99_ps, worst_ps, deadline_ps)
    for metric in range(5):
        if rules.targets[metric] < NO_LIMIT:
            excess = max(excess, spent[metric] / rules.targets[metric])
    return excess, total_ps, exits, 0


@numba.njit(cache=True, error_model="numpy", inline="always")
def better(key, than_excess, than):
    """Whether a key of ``key_of`` comes strictly before the one in (``than_excess``, ``than``)."""
    if key[0] != than_excess:
        return key[0] < than_excess
    if key[1] != than[0]:
        return key[1] < than[0]
    if key[2] != than[1]:
        return key[2] < than[1]
    return key[3] < than[2]
