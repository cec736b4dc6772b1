"""Greedy insertion: the exit that helps most is placed, and again, until none helps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.genome import Genome
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategy import Outcome

__all__ = ["Insertion"]


@dataclass(frozen=True, slots=True)
class Insertion:
    """From the plain design. Where thresholds are shared, once for each. Then again and again with chance in it:
    instead of the best insertion, one of the best w, w being 1, 2, 4, ... or all that help, drawn anew each time.
    """

    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "insertion"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        random = np.random.default_rng(seed)
        layers = int(judge.genome.sizes[0]) if judge.genome.first else 1
        for layer in range(layers):
            _insert(judge, layer, None)
        while not judge.over():
            _insert(judge, int(random.integers(layers)), random)
        return judge.outcome()


def _insert(judge: Judge, layer: int, random: np.random.Generator | None) -> None:
    """random: None takes the best insertion each time."""
    genes = judge.genome.plain()
    genes[: judge.genome.first] = layer
    best = (np.inf, np.inf)
    for _ in range(len(judge.genome.must), judge.genome.most):
        if judge.over():
            return
        offers = _with_one_more(judge.genome, genes)
        merits = judge.merits(offers)
        order = merits.order()
        helps = [row for row in order.tolist() if merits.rank(row) < best]
        if not helps:
            return
        width = 1 if random is None else min(len(helps), 2 ** int(random.integers(len(helps).bit_length() + 1)))
        row = helps[0 if random is None else int(random.integers(width))]
        genes, best = offers[row], merits.rank(row)


def _with_one_more(genome: Genome, genes: np.ndarray) -> np.ndarray:
    """int64 [B, G]: every choice at every candidate that has no exit yet."""
    empty = [gene for gene in range(genome.first, len(genes)) if genes[gene] == 0]
    at = np.repeat(empty, genome.sizes[empty] - 1)
    offers = np.repeat(genes[None], len(at), axis=0)
    offers[np.arange(len(at)), at] = np.concatenate([np.arange(1, genome.sizes[gene]) for gene in empty])
    return offers
