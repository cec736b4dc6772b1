"""What the peers share: designs evaluated batch by batch, the best so far, and the end of the time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.genome import Genome
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.merits import Merits
from hapi_tvm.search.objective import Key, best_index, better
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategy import Outcome, Trace

__all__ = ["MOST_DESIGNS", "Judge"]

MOST_DESIGNS = 2**62
"""How many designs a strategy evaluates at most unless told otherwise: its time ends first."""


class Judge:
    """Evaluates designs, keeps the best one, and says when time is over. Starts with the plain design."""

    def __init__(self, problem: Problem, *, seconds: float, clock: Callable[[], float], most_designs: int):
        """most_designs: the search is over after this many, too."""
        self._clock, self._started_s = clock, clock()
        self._deadline_s = self._started_s + seconds
        self._problem, self._most_designs = problem, most_designs
        self._batch = Batch(problem)
        self._exits: Exits | None = None
        self._key: Key | None = None
        self._designs = 0
        self._trace: list[Trace] = []
        self.genome = Genome.of(problem, self._batch.genes)
        self.merits(self.genome.plain()[None])

    def over(self) -> bool:
        """Whether to stop: to be asked before each batch."""
        enough = self._problem.enough
        return (
            self._designs >= self._most_designs
            or self._clock() >= self._deadline_s
            or (enough is not None and self._key is not None and self._key <= enough)
        )

    def merits(self, genes: np.ndarray) -> Merits:
        """genes: int64 [B, G], as of ``Batch``."""
        figures, fits = self._batch.figures(genes), self._batch.fits(genes)
        self._designs += len(genes)
        merits, key = Merits.of(self._problem, figures, fits), self._problem.objective.key(figures)
        best = best_index(key, (merits.excess == 0) & better(key, self._key))
        if best is not None:
            self._key = tuple(np.broadcast_to(part, fits.shape)[best].item() for part in key)
            self._exits = self._batch.exits(genes[best])
            self._trace.append(Trace(self._clock() - self._started_s, self._key))
        return merits

    def outcome(self, *, proven: bool = False) -> Outcome:
        """proven: every design was looked at."""
        floor = -np.inf if not proven else np.inf if self._key is None else self._key[0]
        return Outcome(self._exits, self._key, float(floor), proven, self._designs, tuple(self._trace))
