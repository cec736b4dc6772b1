"""How good many designs are, those that break a limit too: what a search compares that walks among both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.objective import Figures, Goal, Key, drop_upper
from hapi_tvm.search.problem import Problem

__all__ = ["Merits"]


@dataclass(frozen=True, slots=True)
class Merits:
    """How good B designs are; less is better in both, ``excess`` goes first (the feasibility rules of
    constrained evolutionary search: what keeps the limits beats what does not), and of equals fewer exits are better.

    figures: [B] each.
    excess: float64 [B]: 0 where the SLA and the limits of the space are kept, else the sum of what is over: the
    largest latency as a share of its budget, the accuracy drop as a share of the samples, exits, and 1 for any
    other limit of the space.
    cost: float64 [B]: the first part of the key as a share (of the backbone's latency, of the samples, or the
    ratio to the budget), the second part below the first one's resolution.
    """

    figures: Figures
    excess: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(cls, problem: Problem, figures: Figures, fits: np.ndarray) -> Merits:
        """figures, fits: [B], as ``Batch`` gives them."""
        allowed = fits & problem.objective.feasible(figures)
        key = problem.objective.key(figures)
        return cls(figures, _excess(problem, figures, fits, allowed), _cost(problem, key))

    def order(self) -> np.ndarray:
        """int64 [B], the best first; of equals, the first."""
        return np.lexsort((self.figures.exits, self.cost, self.excess))

    def rank(self, row: int) -> tuple[float, float, int]:
        """(excess, cost, exits) of one design: of two, the better one compares as less."""
        return float(self.excess[row]), float(self.cost[row]), int(self.figures.exits[row])


def _excess(problem: Problem, figures: Figures, fits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    objective = problem.objective
    excess = (~fits).astype(np.float64) + np.maximum(figures.exits - objective.max_exits, 0)
    if objective.goal is not Goal.NEAREST:
        excess += np.maximum(objective.excess(figures) - 1, 0)
    if objective.max_drop is not None:
        drop = drop_upper(figures.lost, figures.gained, objective.samples, objective.z)
        excess += np.maximum(drop - objective.max_drop, 0)
    return np.where(allowed, 0.0, np.maximum(excess, np.finfo(np.float64).tiny))


def _cost(problem: Problem, key: Key) -> np.ndarray:
    goal, samples = problem.objective.goal, problem.instance.samples
    most_ps = samples * (problem.instance.end_ps + int(problem.instance.branch_ps.sum())) + 1
    first, second, _ = (np.asarray(part, dtype=np.float64) for part in key)
    if goal is Goal.ACCURATE:
        return (first + second / most_ps) / samples
    if goal is Goal.NEAREST:
        return first + 1e-9 * second / most_ps
    return (first + (second + samples) / (2 * samples + 1)) / max(1, samples * problem.instance.end_ps)
