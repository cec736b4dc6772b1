"""What all strategies share that look at designs batch by batch: how good each is, the best so far, and the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import Figures, Goal, Key, best_index, better, drop_upper
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.genome import Genome
from hapi_tvm.search.strategy import Outcome, Trace

__all__ = ["MOST_DESIGNS", "Judge", "Merits"]

MOST_DESIGNS = 2**62
"""How many designs a strategy evaluates at most unless told otherwise: its time ends first."""


@dataclass(frozen=True, slots=True)
class Merits:
    """How good B designs are; less is better in both, and ``excess`` goes first (the feasibility rules of
    constrained evolutionary search: what keeps the limits beats what does not).

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

    def order(self) -> np.ndarray:
        """int64 [B], the best first; of equals, the first."""
        return np.lexsort((self.cost, self.excess))

    def pair(self, row: int) -> tuple[float, float]:
        """(excess, cost) of one design: of two, the better one compares as less."""
        return float(self.excess[row]), float(self.cost[row])


class Judge:
    """Evaluates designs, keeps the best one, and says when time is over. Starts with the plain design."""

    def __init__(self, problem: Problem, *, seconds: float, clock: Callable[[], float], most_designs: int):
        """most_designs: the search is over after this many, too."""
        self._clock, self._started_s = clock, clock()
        self._deadline_s = self._started_s + seconds
        self._problem, self._most_designs = problem, most_designs
        self._batch = Batch(problem)
        self._exits: Exits | None = None
        self._key: Key | None = None
        self._designs = 0
        self._trace: list[Trace] = []
        self.genome = Genome.of(problem, self._batch.genes)
        self.merits(self.genome.plain()[None])

    def over(self) -> bool:
        """Whether to stop: to be asked before each batch."""
        return self._designs >= self._most_designs or self._clock() >= self._deadline_s

    def merits(self, genes: np.ndarray) -> Merits:
        """genes: int64 [B, G], as of ``Batch``."""
        figures, fits = self._batch.figures(genes), self._batch.fits(genes)
        self._designs += len(genes)
        allowed = fits & self._problem.objective.feasible(figures)
        key = self._problem.objective.key(figures)
        best = best_index(key, allowed & better(key, self._key))
        if best is not None:
            self._key = tuple(np.broadcast_to(part, allowed.shape)[best].item() for part in key)
            self._exits = self._batch.exits(genes[best])
            self._trace.append(Trace(self._clock() - self._started_s, self._key))
        return Merits(figures, _excess(self._problem, figures, fits, allowed), _cost(self._problem, key))

    def outcome(self, *, proven: bool = False) -> Outcome:
        """proven: every design was looked at."""
        floor = -np.inf if not proven else np.inf if self._key is None else self._key[0]
        return Outcome(self._exits, self._key, float(floor), proven, self._designs, tuple(self._trace))


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
