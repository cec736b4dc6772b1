"""NSGA-II, pymoo's: a population spread along the front of latency and accuracy, within the limits of the SLA."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.merits import Merits
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategies.library import extra
from hapi_tvm.search.strategy import Outcome

__all__ = ["NSGA2"]


@dataclass(frozen=True, slots=True)
class NSGA2:
    """As ``Genetic``, but ranked by dominance in mean latency and accuracy, then by crowding."""

    population: int = 100
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "nsga2"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        with extra("pymoo"):
            from pymoo.algorithms.moo.nsga2 import NSGA2 as Algorithm

            from hapi_tvm.search.strategies.evolution import evolve
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        evolve(judge, Algorithm, _latency_and_drop, self.population, np.random.default_rng(seed))
        return judge.outcome()


def _latency_and_drop(merits: Merits) -> np.ndarray:
    figures = merits.figures
    return np.column_stack([figures.total_ps, figures.lost - figures.gained]).astype(np.float64)
