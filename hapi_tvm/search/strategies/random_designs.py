"""Designs drawn at random."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategy import Outcome

__all__ = ["RandomDesigns"]


@dataclass(frozen=True, slots=True)
class RandomDesigns:
    """Any number of exits is as likely as another, then every place, then every branch kind and threshold."""

    batch: int = 2048
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "random"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        judge, random = (
            Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs),
            np.random.default_rng(seed),
        )
        while not judge.over():
            judge.merits(judge.genome.sparse(self.batch, random))
        return judge.outcome()
