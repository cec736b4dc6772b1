"""Every design, the ones with few exits first."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.genome import Genome
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategy import Outcome

__all__ = ["Exhaustive"]


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """By number of exits, then place by place, then choice by choice. Proves its answer if it comes to the end."""

    batch: int = 4096
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "exhaustive"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        for genes in _designs(judge.genome, self.batch):
            if judge.over():
                return judge.outcome()
            judge.merits(genes)
        return judge.outcome(proven=True)


def _designs(genome: Genome, batch: int) -> Iterator[np.ndarray]:
    """int64 [at most batch, G] each."""
    places = [gene for gene in range(genome.first, len(genome.sizes)) if genome.sizes[gene] > 1]
    must = set(genome.must.tolist())
    free = [gene for gene in places if gene not in must]
    layers = genome.sizes[: genome.first].tolist()
    for exits in range(len(must), genome.most + 1):
        for chosen in itertools.combinations(free, exits - len(must)):
            at = [*range(genome.first), *sorted(must | set(chosen))]
            shape = (*layers, *(genome.sizes[at[genome.first :]] - 1).tolist())
            yield from _filled(genome, at, shape, batch)


def _filled(genome: Genome, at: list[int], shape: tuple[int, ...], batch: int) -> Iterator[np.ndarray]:
    """All values of the genes ``at``, of which each has as many as ``shape`` says; an exit's begin at 1."""
    head, tail = shape[:-3], shape[-3:]
    for before in np.ndindex(head):
        size = int(np.prod(tail, dtype=np.int64))
        for start in range(0, size, batch):
            index = np.arange(start, min(start + batch, size))
            genes = np.zeros((len(index), len(genome.sizes)), dtype=np.int64)
            genes[:, at[: len(head)]] = before
            for gene, values in zip(reversed(at), reversed(tail), strict=False):
                index, genes[:, gene] = np.divmod(index, values)
            genes[:, at[genome.first :]] += 1
            yield genes
