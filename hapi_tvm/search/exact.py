"""Branch and bound over the whole space: the best design, or the best so far and how far off it can be."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.beam import beam
from hapi_tvm.search.breeding import Breeding
from hapi_tvm.search.climb import Climb
from hapi_tvm.search.frontier import Floor, Frontier, LayerSearch
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import Goal, Key
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.refine import refine
from hapi_tvm.search.rules import NO_LIMIT, of_problem
from hapi_tvm.search.scan import falling_order
from hapi_tvm.search.scout import Scout
from hapi_tvm.search.strategy import Outcome, Trace
from hapi_tvm.search.walk import new_best

__all__ = ["Exact"]

BEAM_WIDTH = 8
POLISH_SHARE = 0.2
"""Of the time, what thresholds off the grid may take before the proof, and again behind it."""

TURN_WORDS = 3e8
"""Words that the tree may count before the local search has its turn, some tenths of a second."""

FIRST_WORDS = 3e8
"""Words that the local search may count before the tree begins: at least, but no more than the tree has."""

FINITE_WORDS = 1.7e11
"""Trees with more words than this below their roots, for each second given, are not expected to be walked to their
end. In ``scripts/bench_search.py`` trees of 1.4e12 words were, in 60 s; those of 4e15 stay far from it."""

TAIL_COST = 15
"""Where a percentile, the worst case or a deadline is limited, a word of the tree is taken for so many times as dear:
in ``scripts/bench_search.py`` 8 to 39 times, but on one network no more than under a mean."""

FINITE_SHARE, ENDLESS_SHARE = 0.1, 0.9
"""Of all words, those that the local search may count."""

FINITE_LOOK, ENDLESS_LOOK, BEAM_SHARE = 0.5, 0.9, 0.1
"""Of the time on the grid, what the local search may take before the tree begins, and then the beams."""

FEW_EXITS = 16
"""Where designs may have more, breeding is all of the local search: a climb tries pairs of exits."""

BRED_SHARE = 0.1
"""Of the local search's words, those for breeding, elsewhere."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A local search and one with a beam, thresholds off the grid from there, then branch and bound to the proof, with
    more local search in between, and thresholds off the grid again. Memory: N * (M + C) / 8 bytes a layer, and at
    most 100 MiB of open nodes beside.

    Local search climbs, with a genetic algorithm beside it, which is alone where designs may have many exits.
    polish: False stays on the grid. The seed is for the local search.
    """

    polish: bool = True
    name: ClassVar[str] = "exact"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        run = _Run(problem, seed, clock, seconds)
        polish_s = POLISH_SHARE * seconds if self.polish else 0.0
        proof_ends_s = run.started_s + seconds - polish_s
        grid_s = proof_ends_s - polish_s - clock()
        run.look_around(clock() + (ENDLESS_LOOK if run.endless else FINITE_LOOK) * grid_s)
        run.beams(clock() + BEAM_SHARE * grid_s)
        if self.polish:
            run.polish(clock() + polish_s, alternatives=False)
        proven = run.prove(proof_ends_s)
        if self.polish:
            run.polish(run.started_s + seconds, alternatives=True)
        return run.outcome(proven)


class _Run:
    """The best design so far, on the grid or off it, and what was proven."""

    def __init__(self, problem: Problem, seed: int, clock: Callable[[], float], seconds: float):
        self.problem, self.clock, self.started_s = problem, clock, clock()
        self.batch = Batch(problem)
        self.scout = Scout(problem, self.batch)
        random = np.random.default_rng(seed)
        self.climb, self.breeding = Climb(self.scout, random), Breeding(self.scout, random)
        self.bred_words, self.bred_share = 0.0, 1.0 if self.scout.genome.most > FEW_EXITS else BRED_SHARE
        self.rules = of_problem(problem)
        self.best = new_best(self.rules)
        self.exits: Exits | None = None
        self.key: Key | None = None
        self.trace: list[Trace] = []
        self.layers = [LayerSearch.of(self.batch.layer(index), self.rules) for index in range(len(problem.layers))]
        self.tree_words = sum(layer.words_below(()) for layer in self.layers)
        cost = TAIL_COST if problem.objective.budgets_ps.keys() - {"mean"} else 1
        self.endless = cost * self.tree_words > FINITE_WORDS * seconds
        self.frontier = Frontier(self.layers, self.best, self.improved)
        self.polished: set[Exits] = set()

    def look_around(self, deadline_s: float) -> None:
        """The empty design, and what the local search finds before there is a tree."""
        if self.problem.feasible(()):
            self._take((), self._key(()))
        self._search_locally(min(self.tree_words, max(FIRST_WORDS, self._local_words(TURN_WORDS))), deadline_s)

    def beams(self, deadline_s: float) -> None:
        """A beam search in each layer while there is time."""
        for index, layer in enumerate(self.layers):
            beam(
                layer.bits,
                self.rules,
                self.problem.objective,
                self.best,
                BEAM_WIDTH,
                deadline_s=deadline_s,
                clock=self.clock,
            )
            self.improved(index)

    def prove(self, deadline_s: float) -> bool:
        allowed, before = self.scout.words, int(self.best.designs[0])

        def take_turns() -> None:
            nonlocal allowed, before
            counted = (int(self.best.designs[0]) - before) * self.layers[0].words
            if counted >= TURN_WORDS:
                allowed, before = allowed + self._local_words(counted), int(self.best.designs[0])
                self._search_locally(allowed, deadline_s)

        return self.frontier.run(deadline_s, self.clock, lambda floor: floor >= self._bar(), take_turns)

    def _local_words(self, words: float) -> float:
        """Those of the local search, for so many of the tree."""
        share = ENDLESS_SHARE if self.endless else FINITE_SHARE
        return words * share / (1 - share)

    def _search_locally(self, words: float, deadline_s: float) -> None:
        """Until it has counted so many words in all."""
        if not self.scout.genome.most:
            return
        while self.scout.words < words and self.clock() < deadline_s:
            known, before = self.scout.best, self.scout.words
            if self.bred_words <= self.bred_share * before:
                self.breeding.step()
                self.bred_words += self.scout.words - before
            else:
                self.climb.step()
            news = self.scout.best is not known and self.scout.keeps_all_limits
            if news and (self.key is None or self.scout.key < self.key):
                self._take(self.batch.exits(self.scout.best), self.scout.key)

    def polish(self, deadline_s: float, *, alternatives: bool) -> None:
        """Thresholds off the grid: of the best design; and of those with exits elsewhere, for one of them may be the
        best then."""
        starts = [] if self.exits is None else [self.exits]
        starts += [self.batch.exits(genes) for genes in self.scout.alternatives] if alternatives else []
        for start in starts:
            if start not in self.polished and self.clock() < deadline_s:
                self._polish(start, deadline_s)

    def _polish(self, start: Exits, deadline_s: float) -> None:
        exits = refine(self.problem, start, falling=self._falling, deadline_s=deadline_s, clock=self.clock)
        self.polished |= {start, exits}
        key = self._key(exits)
        if key < self.key:
            self._take(exits, key)

    @functools.cached_property
    def _falling(self) -> np.ndarray:
        return falling_order(self.problem.instance)

    def improved(self, index: int) -> None:
        """Take over what the compiled search has found in a layer."""
        if self.best.exits[0] >= 0:
            path = self.best.path[: self.best.exits[0]]
            self.best.exits[0] = -1
            self._take(self.problem.layers[index].exits(path), self.scout.key_of(self.batch.genes_of(index, path)))

    def outcome(self, proven: bool) -> Outcome:
        open_floor = None if proven else self.frontier.floor
        floors = [] if open_floor is None else [self._first(open_floor)]
        if self.key is not None:
            floors.append(self.key[0])
        floor = min(floors, default=float("inf"))
        return Outcome(self.exits, self.key, floor, proven, int(self.best.designs[0]), tuple(self.trace))

    def _key(self, exits: Exits) -> Key:
        return tuple(part if isinstance(part, (int, float)) else part.item() for part in self.problem.key(exits))

    def _take(self, exits: Exits, key: Key) -> None:
        self.exits, self.key = exits, key
        excess, *rest = self._bar()
        self.best.excess[0] = excess
        self.best.key[:] = rest
        self.trace.append(Trace(self.clock() - self.started_s, self.key))

    def _bar(self) -> Floor:
        """The key to beat, in the form of ``key_of``."""
        if self.key is None:
            return (float("inf"), NO_LIMIT, NO_LIMIT, NO_LIMIT)
        nearest = self.problem.objective.goal is Goal.NEAREST
        return (*self.key, 0) if nearest else (0.0, *self.key)

    def _first(self, floor: Floor) -> float:
        return floor[0] if self.problem.objective.goal is Goal.NEAREST else floor[1]
