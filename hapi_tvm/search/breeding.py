"""A genetic algorithm on the grid: where many exits may be placed, mixing good designs beats climbing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hapi_tvm.search.scout import Scout

__all__ = ["Breeding"]

POPULATION = 200
GROWTH = 1.5
"""Of the population, from one random one to the next."""

PATIENCE = 50
"""Generations without a better design that end a population."""

ELITE = 20
"""How many of a population's best are bred again with those of the others."""


class Breeding:
    """Populations that begin at random, the best of each then bred together with the best of those before.

    Binary tournaments by merit (see ``Merits``), uniform crossover, one change to each child, and the best of both
    generations live on, each design once.
    """

    def __init__(self, scout: Scout, random: np.random.Generator):
        self._scout, self._random, self._genome = scout, random, scout.genome
        self._weights = random.integers(2**63, size=len(self._genome.sizes))  # a design's hash is its product
        self._generations = self._populations()

    def step(self) -> None:
        """One generation, or the beginning of a population."""
        next(self._generations)

    def _populations(self) -> Iterator[None]:
        size, elite = float(POPULATION), np.empty((0, len(self._genome.sizes)), dtype=np.int64)
        while True:
            grown = yield from self._population(self._genome.plain()[None], int(size))
            elite = yield from self._population(np.vstack([grown[:ELITE], elite]), int(size))
            elite, size = elite[:ELITE], GROWTH * size

    def _population(self, founders: np.ndarray, size: int) -> Iterator[None]:
        """founders: int64 [F, G]; the others are random. Returns int64 [P, G], the best first."""
        genes = np.vstack([founders, self._genome.sparse(size - len(founders), self._random)])
        genes, ranks = self._ranked(genes, np.empty((0, 3)))
        yield
        best, idle = tuple(ranks[0]), 0
        while idle < PATIENCE:
            genes, ranks = self._ranked(np.vstack([genes, self._children(genes, size)]), ranks)
            genes, ranks = genes[:size], ranks[:size]
            yield
            best, idle = (tuple(ranks[0]), 0) if tuple(ranks[0]) < best else (best, idle + 1)
        return genes

    def _children(self, genes: np.ndarray, count: int) -> np.ndarray:
        """genes: int64 [P, G], the best first. int64 [count, G]."""
        mothers, fathers = self._random.integers(0, len(genes), (2, count, 2)).min(axis=2)
        mixed = np.where(self._random.random((count, genes.shape[1])) < 0.5, genes[mothers], genes[fathers])
        return self._genome.mutated(self._genome.trimmed(mixed, self._random), self._random)

    def _ranked(self, genes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each design once, the best first, with its rank (see ``Merits``), float64 [P, 3]. known: of the first."""
        merits = self._scout.merits(genes[len(known) :])
        ranks = np.vstack([known, np.column_stack([merits.excess, merits.cost, merits.figures.exits])])
        _, first = np.unique(genes @ self._weights, return_index=True)
        order = first[np.lexsort(ranks[first].T[::-1])]
        return genes[order], ranks[order]
