"""What the local searches of the exact one share: designs judged batch by batch, and the best so far."""

from __future__ import annotations

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.genome import Genome
from hapi_tvm.search.merits import Merits
from hapi_tvm.search.objective import Figures, Key
from hapi_tvm.search.problem import Problem

__all__ = ["Scout"]

BATCH_WORDS = 3e5
"""What a batch takes beside its designs, as so many words counted."""

ALTERNATIVES = 8


class Scout:
    """Judges designs. words: how much it has done, in words of 64 samples that it counted.
    best: int64 [G], the best design met, the plain one at the start; it may break limits. key: its key, if met."""

    def __init__(self, problem: Problem, batch: Batch):
        self._problem, self._batch = problem, batch
        self.genome = Genome.of(problem, batch.genes)
        self.best, self._rank = self.genome.plain(), (np.inf, np.inf, 0)
        self.key: Key | None = None
        self.words = 0.0
        self._alternatives: dict[bytes, tuple[tuple, np.ndarray]] = {}
        self.words_an_exit = -(-problem.instance.samples // 64)

    @property
    def keeps_all_limits(self) -> bool:
        """Whether ``best`` does."""
        return self._rank[0] == 0

    def merits(self, genes: np.ndarray) -> Merits:
        """genes: int64 [B, G], as of ``Batch``."""
        figures = self._batch.figures(genes)
        self.words += BATCH_WORDS + self.words_an_exit * (int(figures.exits.sum()) + len(genes))
        merits = Merits.of(self._problem, figures, self._batch.fits(genes))
        row = int(merits.order()[0])
        rank = merits.rank(row)
        if rank < self._rank:
            self.best, self.key, self._rank = genes[row].copy(), self._key(figures, row), rank
        if rank[0] == 0:
            self._remember(genes[row], rank)
        return merits

    @property
    def alternatives(self) -> list[np.ndarray]:
        """int64 [G] each, the best first: of the best of every batch that keep all limits, those with their exits
        at other candidates than better ones. At most ``ALTERNATIVES``."""
        return [genes for _, genes in sorted(self._alternatives.values(), key=lambda known: known[0])]

    def key_of(self, genes: np.ndarray) -> Key:
        """Of one design, int64 [G], which is judged, too."""
        return self._key(self.merits(genes[None]).figures, 0)

    def _remember(self, genes: np.ndarray, rank: tuple[float, float, int]) -> None:
        known, places = self._alternatives, (genes[self.genome.first :] > 0).tobytes()
        if places not in known or rank < known[places][0]:
            known[places] = (rank, genes.copy())
        if len(known) > ALTERNATIVES:
            del known[max(known, key=lambda places: known[places][0])]

    def _key(self, figures: Figures, row: int) -> Key:
        return tuple(part[row].item() for part in self._problem.objective.key(figures))
