"""Greedy coordinate descent: one exit after the other takes its best threshold, the others held."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategy import Outcome

__all__ = ["CoordinateDescent"]


@dataclass(frozen=True, slots=True)
class CoordinateDescent:
    """Candidate by candidate, the best of all its branch kinds and thresholds, or no exit, until nothing helps.
    The first descent starts at the plain design and goes in network order; each later one starts at a random
    design and goes in a random order."""

    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "coordinate"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        random = np.random.default_rng(seed)
        genes, order = judge.genome.plain(), np.flatnonzero(judge.genome.sizes > 1)
        while not judge.over():
            _descend(judge, genes, order)
            genes, order = judge.genome.sparse(1, random)[0], random.permutation(order)
        return judge.outcome()


def _descend(judge: Judge, genes: np.ndarray, order: np.ndarray) -> None:
    """genes: int64 [G]. order: the genes to try, in turn."""
    best, idle = judge.merits(genes[None]).rank(0), 0
    while idle < len(order):
        for gene in order:
            if judge.over():
                return
            line = np.repeat(genes[None], judge.genome.sizes[gene], axis=0)
            line[:, gene] = np.arange(len(line))
            merits = judge.merits(line)
            row = int(merits.order()[0])
            idle += 1
            if merits.rank(row) < best:
                genes, best, idle = line[row], merits.rank(row), 0
            if idle == len(order):
                return
