"""A genetic algorithm, pymoo's, that ranks designs by the objective alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategies.library import extra
from hapi_tvm.search.strategy import Outcome

__all__ = ["Genetic"]


@dataclass(frozen=True, slots=True)
class Genetic:
    """Binary tournaments by the feasibility rules, uniform crossover, ``Genome.mutated``, the best survive; after
    50 idle generations again, with a population twice as large. Raises MissingPackage without pymoo."""

    population: int = 100
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "genetic"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        with extra("pymoo"):
            from pymoo.algorithms.soo.nonconvex.ga import GA

            from hapi_tvm.search.strategies.evolution import evolve
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        evolve(judge, GA, lambda merits: merits.cost[:, None], self.population, np.random.default_rng(seed))
        return judge.outcome()
