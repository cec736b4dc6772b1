"""Iterated local search on the grid: it finds early what branch and bound would come to late."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hapi_tvm.search.scout import Scout

__all__ = ["Climb"]

LINE_DESIGNS = 2000
"""About how many neighbours are evaluated at once."""

PAIR_WORDS = 1.6e6
"""Neighbours that differ in two exits, times the words of the samples: bounds how far thresholds move together."""

FRESH_SHARE = 0.5
"""Of the climbs, how many begin at a random design rather than near the best one."""


class Climb:
    """Climbs to a design that no neighbour beats, then again from somewhere near the best one, without end.

    Neighbours: any choice at one candidate, or none; an exit taken out and one placed elsewhere; two exits with
    other thresholds, all pairs of these where they are few, else near ones. Ranked by ``Merits``, so
    that a climb that starts outside the SLA first finds a way in.
    """

    def __init__(self, scout: Scout, random: np.random.Generator):
        self._scout, self._random, self._genome = scout, random, scout.genome
        self._climbs = self._climb_on()

    def step(self) -> None:
        """Evaluate one batch of neighbours."""
        next(self._climbs)

    def _climb_on(self) -> Iterator[None]:
        genes = self._scout.best
        while True:
            yield from self._climb(genes)
            genes = self._kicked()

    def _climb(self, genes: np.ndarray) -> Iterator[None]:
        """genes: int64 [G]. Ends where no neighbour is better. The first batch with a better one decides."""
        merit, better = self._scout.merits(genes[None]).rank(0), True
        yield
        while better:
            better = False
            for offers in self._neighbours(genes):
                merits = self._scout.merits(offers)
                row = int(merits.order()[0])
                yield
                if merits.rank(row) < merit:
                    genes, merit, better = offers[row], merits.rank(row), True
                    break

    def _kicked(self) -> np.ndarray:
        if self._random.random() < FRESH_SHARE:
            return self._genome.sparse(1, self._random)[0]
        genes = self._scout.best[None]
        for _ in range(1 + int(self._random.geometric(0.4))):
            genes = self._genome.mutated(genes, self._random)
        return genes[0]

    def _neighbours(self, genes: np.ndarray) -> Iterator[np.ndarray]:
        """int64 [B, G] each, the cheap kinds first."""
        genome, first = self._genome, self._genome.first
        free = self._random.permutation(np.flatnonzero(genome.sizes > 1))
        placed = self._random.permutation(first + np.flatnonzero(genes[first:]))
        movable = np.concatenate([np.arange(first), placed])
        yield from self._lines(genes, free if len(placed) < genome.most else movable)
        pairs = [(one, two) for index, one in enumerate(movable) for two in movable[:index]]
        for one, two in self._random.permutation(pairs).tolist() if pairs else []:
            yield self._grid(genes, one, two, int(PAIR_WORDS / (len(pairs) * self._scout.words_an_exit)))
        for gone in placed.tolist():
            without = genes.copy()
            without[gone] = 0
            yield from self._lines(without, free[(free >= first) & (free != gone)])

    def _lines(self, genes: np.ndarray, free: np.ndarray) -> Iterator[np.ndarray]:
        """Every value of each gene of ``free``, one gene at a time."""
        sizes = self._genome.sizes[free]
        parts = np.cumsum(sizes) // LINE_DESIGNS
        for part in np.unique(parts):
            chosen, lengths = free[parts == part], sizes[parts == part]
            offers = np.repeat(genes[None], lengths.sum(), axis=0)
            offers[np.arange(len(offers)), np.repeat(chosen, lengths)] = np.concatenate(
                [np.arange(length) for length in lengths]
            )
            yield offers

    def _grid(self, genes: np.ndarray, one: int, two: int, designs: int) -> np.ndarray:
        """Values of two genes in all pairs, the nearest to the present ones, at most about ``designs``."""
        near = max(1, int((designs**0.5 - 1) / 2))
        values = [self._near(genes, gene, near) for gene in (one, two)]
        offers = np.repeat(genes[None], len(values[0]) * len(values[1]), axis=0)
        offers[:, one] = np.repeat(values[0], len(values[1]))
        offers[:, two] = np.tile(values[1], len(values[0]))
        return offers

    def _near(self, genes: np.ndarray, gene: int, near: int) -> np.ndarray:
        low = 0 if gene < self._genome.first else 1
        return np.arange(max(low, genes[gene] - near), min(self._genome.sizes[gene], genes[gene] + near + 1))
