"""Simulated annealing: many chains side by side, cooled again and again, each time more slowly."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategy import Outcome

__all__ = ["Annealing"]

PENALTY = 20.0
"""What one unit of ``Merits.excess`` costs, in units of ``Merits.cost``."""

HOT, COLD = 0.03, 1e-6
"""Temperatures at the ends of a cooling, in units of ``Merits.cost``; between them it falls geometrically."""


@dataclass(frozen=True, slots=True)
class Annealing:
    """Proposals: ``Genome.mutated``. The first chain starts at the plain design, the others at random ones; a later
    cooling takes twice as many steps, and half of its chains go on from where the last one ended."""

    chains: int = 64
    first_steps: int = 200
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "annealing"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        random, steps = np.random.default_rng(seed), self.first_steps
        genes = judge.genome.sparse(self.chains, random)
        genes[0] = judge.genome.plain()
        while not judge.over():
            genes = _cooled(judge, genes, steps, random)
            genes[::2] = judge.genome.sparse(len(genes[::2]), random)
            steps *= 2
        return judge.outcome()


def _cooled(judge: Judge, genes: np.ndarray, steps: int, random: np.random.Generator) -> np.ndarray:
    """genes: int64 [chains, G]. Returns where the chains are after ``steps``, or at the end of the time."""
    energy = _energy(judge, genes)
    for temperature in np.geomspace(HOT, COLD, steps):
        if judge.over():
            break
        proposed = judge.genome.mutated(genes, random)
        proposed_energy = _energy(judge, proposed)
        taken = proposed_energy - energy <= temperature * random.exponential(size=len(genes))
        genes, energy = np.where(taken[:, None], proposed, genes), np.where(taken, proposed_energy, energy)
    return genes


def _energy(judge: Judge, genes: np.ndarray) -> np.ndarray:
    merits = judge.merits(genes)
    return merits.cost + PENALTY * merits.excess
