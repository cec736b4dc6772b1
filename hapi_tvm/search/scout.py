"""What the local searches of the exact one share: designs judged batch by batch, and the best so far."""

from __future__ import annotations

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.genome import Genome
from hapi_tvm.search.merits import Merits
from hapi_tvm.search.problem import Problem

__all__ = ["Scout"]


class Scout:
    """Judges designs. choices: grows by the exits that they place together, and one for each.
    best: int64 [G], the best design met, the plain one at the start; it may break limits."""

    def __init__(self, problem: Problem, batch: Batch):
        self._problem, self._batch = problem, batch
        self.genome = Genome.of(problem, batch.genes)
        self.best, self._merit = self.genome.plain(), (np.inf, np.inf)
        self.choices = 0

    @property
    def keeps_all_limits(self) -> bool:
        """Whether ``best`` does."""
        return self._merit[0] == 0

    def merits(self, genes: np.ndarray) -> Merits:
        """genes: int64 [B, G], as of ``Batch``."""
        figures = self._batch.figures(genes)
        self.choices += int(figures.exits.sum()) + len(genes)
        merits = Merits.of(self._problem, figures, self._batch.fits(genes))
        row = int(merits.order()[0])
        if merits.pair(row) < self._merit:
            self.best, self._merit = genes[row].copy(), merits.pair(row)
        return merits
