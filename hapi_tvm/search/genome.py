"""Designs at random and small changes to designs, in the genes of ``Batch``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.problem import Problem

__all__ = ["Genome"]

_STEP, _REMOVE, _MOVE, _PLACE = range(4)


@dataclass(frozen=True, slots=True)
class Genome:
    """sizes: int64 [G], how many values each gene has. first: the gene of candidate 0; the ones before choose the
    layer. must: int64, the genes that carry an exit in every design. most: how many exits a design may place.

    What the methods return keeps ``must`` and ``most``; other limits (size, SLA) it may break.
    """

    sizes: np.ndarray
    first: int
    must: np.ndarray
    most: int

    @classmethod
    def of(cls, problem: Problem, genes: tuple[int, ...]) -> Genome:
        """genes: of the problem's ``Batch``."""
        first = int(problem.space.shared)
        must = np.array(sorted(problem.space.must), dtype=np.int64) + first
        placeable = int(np.count_nonzero(np.array(genes[first:]) > 1))
        return cls(np.array(genes, dtype=np.int64), first, must, min(problem.objective.max_exits, placeable))

    def plain(self) -> np.ndarray:
        """int64 [G]: no exit but those that must be there, at their highest thresholds."""
        genes = np.zeros(len(self.sizes), dtype=np.int64)
        genes[self.must] = self.sizes[self.must] - 1
        return genes

    def sparse(self, count: int, random: np.random.Generator) -> np.ndarray:
        """int64 [count, G]: any number of exits is as likely as another, then every place, then every choice."""
        genes = self._drawn(count, random)
        return self._thinned(genes, random.integers(len(self.must), self.most + 1, count), random)

    def trimmed(self, genes: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """genes: int64 [B, G], of any designs. Exits too many are taken out at random, missing ones put in."""
        genes = np.where((genes == 0) & np.isin(np.arange(len(self.sizes)), self.must), self._drawn(1, random), genes)
        return self._thinned(genes, np.full(len(genes), self.most), random)

    def mutated(self, genes: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """genes: int64 [B, G]. One of four changes to each design, as likely as each other: another threshold for
        an exit, mostly a near one; an exit taken out; one taken out and one placed; one placed."""
        rows, genes = np.arange(len(genes)), genes.copy()
        placed = (genes > 0) | (np.arange(genes.shape[1]) < self.first)
        old = np.argmax(random.random(genes.shape) * placed, axis=1)
        new = random.integers(self.first, genes.shape[1], len(genes))
        drawn = self._drawn(len(genes), random)
        change = np.where(placed.any(axis=1), random.integers(0, 4, len(genes)), _PLACE)
        steps = random.geometric(0.3, len(genes)) * random.choice([-1, 1], len(genes))
        low, high = (old >= self.first).astype(np.int64), self.sizes[old] - 1
        stepped = np.clip(genes[rows, old] + steps, np.minimum(low, high), high)
        gone = np.where(old < self.first, drawn[rows, old], 0)
        genes[rows, old] = np.choose(change, [stepped, gone, gone, genes[rows, old]])
        genes[rows, new] = np.where(change >= _MOVE, drawn[rows, new], genes[rows, new])
        return self.trimmed(genes, random)

    def _drawn(self, count: int, random: np.random.Generator) -> np.ndarray:
        """int64 [count, G]: an exit at every candidate that may have one."""
        low = np.minimum(self.sizes - 1, np.arange(len(self.sizes)) >= self.first)
        return random.integers(low, self.sizes, (count, len(self.sizes)))

    def _thinned(self, genes: np.ndarray, keep: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """keep: int64 [B], how many exits stay, those of ``must`` among them."""
        rank = random.random(genes.shape)
        rank[genes == 0] = 2
        rank[:, self.must] = -1
        rank[:, : self.first] = 3
        gone = np.argsort(np.argsort(rank, axis=1), axis=1) >= keep[:, None]
        gone[:, : self.first] = False
        return np.where(gone, 0, genes)
