"""pymoo's genetic algorithms on a ``Judge``: the problem, our moves as operators, and restarts. Imports pymoo.

Its hooks are handed more than is used here: hence ``*args`` and ``**kwargs``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymoo.core.algorithm import Algorithm
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import Termination
from pymoo.operators.crossover.ux import UniformCrossover

from hapi_tvm.search.genome import Genome
from hapi_tvm.search.merits import Merits
from hapi_tvm.search.strategies.judge import Judge

__all__ = ["evolve"]

PATIENCE = 50
"""Generations without a better design before a restart."""

MOST_POPULATION = 1600
"""pymoo takes time with the square of the population. In small spaces the population is no larger than the root of
the number of designs: pymoo looks long for children that are in it already."""

Objectives = Callable[[Merits], np.ndarray]
"""float64 [B, 1] or [B, 2], less is better: what ranks the designs that keep all limits."""


def evolve(
    judge: Judge, make: Callable[..., Algorithm], objectives: Objectives, population: int, random: np.random.Generator
) -> None:
    """Run algorithms of the class ``make`` until the judge is over: each from a new sample, the plain design in it,
    with a population twice that of the last."""
    most = max(4, int(min(MOST_POPULATION, np.prod(judge.genome.sizes, dtype=np.float64) ** 0.5)))
    while not judge.over():
        problem = _Designs(judge, objectives)
        running = make(
            pop_size=min(population, most),
            seed=int(random.integers(2**31)),
            sampling=_Sample(judge.genome),
            crossover=UniformCrossover(),
            mutation=_Mutate(judge.genome),
            repair=_Trim(judge.genome),
        )
        running.setup(problem, termination=_Stagnation(problem))
        while running.has_next():
            running.next()
        population *= 2


class _Designs(Problem):
    def __init__(self, judge: Judge, objectives: Objectives):
        columns = objectives(judge.merits(judge.genome.plain()[None])).shape[1]
        super().__init__(
            n_var=len(judge.genome.sizes), n_obj=columns, n_ieq_constr=1, xl=0, xu=judge.genome.sizes - 1, vtype=int
        )
        self.judge, self.objectives = judge, objectives
        self.best, self.idle = (np.inf, np.inf, 0), 0

    def _evaluate(self, x, out, *args, **kwargs):
        merits = self.judge.merits(x.astype(np.int64))
        out["F"], out["G"] = self.objectives(merits), merits.excess[:, None]
        best = merits.rank(int(merits.order()[0]))
        self.best, self.idle = (best, 0) if best < self.best else (self.best, self.idle + 1)


class _Stagnation(Termination):
    def __init__(self, problem: _Designs):
        super().__init__()
        self.problem = problem

    def _update(self, algorithm) -> float:
        return float(self.problem.judge.over() or self.problem.idle > PATIENCE)


class _Sample(Sampling):
    def __init__(self, genome: Genome):
        super().__init__()
        self.genome = genome

    def _do(self, problem, n_samples, *args, random_state, **kwargs):
        return np.vstack([self.genome.plain(), self.genome.sparse(n_samples - 1, random_state)])


class _Mutate(Mutation):
    def __init__(self, genome: Genome):
        super().__init__()
        self.genome = genome

    def _do(self, problem, genes, *args, random_state, **kwargs):
        return self.genome.mutated(genes.astype(np.int64), random_state)


class _Trim(Repair):
    def __init__(self, genome: Genome):
        super().__init__(vtype=np.int64)
        self.genome = genome

    def _do(self, problem, genes, *args, random_state, **kwargs):
        return self.genome.trimmed(genes, random_state)
