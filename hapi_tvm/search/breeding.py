"""A genetic algorithm on the grid: where climbing takes long, mixing good designs finds better ones sooner."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hapi_tvm.search.scout import Scout

__all__ = ["Breeding"]

POPULATION = 100

PATIENCE = 50
"""Generations without a better design before a new population, twice as large."""


class Breeding:
    """Binary tournaments by merit (see ``Merits``), uniform crossover, one change to each child, and the best of both
    generations live on, each design once. A population begins with random designs and the best one known."""

    def __init__(self, scout: Scout, random: np.random.Generator):
        self._scout, self._random = scout, random
        self._generations = self._populations()

    def step(self) -> None:
        """One generation, or the beginning of a population."""
        next(self._generations)

    def _populations(self) -> Iterator[None]:
        size = POPULATION
        while True:
            yield from self._population(size)
            size *= 2

    def _population(self, size: int) -> Iterator[None]:
        genome = self._scout.genome
        genes = np.vstack([self._scout.best, genome.sparse(size - 1, self._random)])
        genes, order = self._ranked(genes, np.empty((0, 2)))
        yield
        best, idle = tuple(order[0]), 0
        while idle < PATIENCE:
            genes, order = self._ranked(np.vstack([genes, self._children(genes, size)]), order)
            genes, order = genes[:size], order[:size]
            yield
            best, idle = (tuple(order[0]), 0) if tuple(order[0]) < best else (best, idle + 1)

    def _children(self, genes: np.ndarray, count: int) -> np.ndarray:
        """genes: int64 [P, G], the best first. int64 [count, G]."""
        mothers, fathers = self._random.integers(0, len(genes), (2, count, 2)).min(axis=2)
        mixed = np.where(self._random.random((count, genes.shape[1])) < 0.5, genes[mothers], genes[fathers])
        return self._scout.genome.mutated(self._scout.genome.trimmed(mixed, self._random), self._random)

    def _ranked(self, genes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each design once, the best first, with its (excess, cost), float64 [P, 2]. known: of the first genes."""
        merits = self._scout.merits(genes[len(known) :])
        pairs = np.vstack([known, np.column_stack([merits.excess, merits.cost])])
        _, first = np.unique(genes, axis=0, return_index=True)
        order = first[np.lexsort((pairs[first, 1], pairs[first, 0]))]
        return genes[order], pairs[order]
