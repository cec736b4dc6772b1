"""Branch and bound over the whole space: the best design, or the best so far and how far off it can be."""

from __future__ import annotations

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

TURN_WORDS = 1e9
"""Words that the tree may count before the local search has its turn, about half a second."""

LOCAL_SHARE = 0.1
"""Words that the local search may count for each of the tree's, where the tree can be walked to its end."""

FIRST_WORDS = 3e8
"""Words that the local search may count before the tree begins, about a fifth of a second."""

FINITE_WORDS = 1e12
"""Trees with more words than this below their roots are not expected to be walked to their end."""

ENDLESS_SHARE = 9.0
"""Words that the local search may count for each of such a tree's."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A beam search and a local one, thresholds off the grid from there, then branch and bound to the proof, with more
    local search in between, and thresholds off the grid again. Memory: N * (M + C) / 8 bytes a layer, and at most
    100 MiB of open nodes beside.

    Local search is a climb, and in trees without end a genetic algorithm beside it, word for word.
    polish: False stays on the grid. The seed is for the local search.
    """

    polish: bool = True
    name: ClassVar[str] = "exact"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        run = _Run(problem, seed, clock)
        run.start(clock() + 0.5 * seconds)
        run.look_around(clock() + 0.5 * seconds)
        if self.polish:
            run.polish(clock() + POLISH_SHARE * seconds)
        proven = run.prove(run.started_s + (1 - POLISH_SHARE if self.polish else 1) * seconds)
        if self.polish:
            run.polish(run.started_s + seconds)
        return run.outcome(proven)


class _Run:
    """The best design so far, on the grid or off it, and what was proven."""

    def __init__(self, problem: Problem, seed: int, clock: Callable[[], float]):
        self.problem, self.clock, self.started_s = problem, clock, clock()
        self.batch = Batch(problem)
        self.scout = Scout(problem, self.batch)
        random = np.random.default_rng(seed)
        self.climb, self.breeding = Climb(self.scout, random), Breeding(self.scout, random)
        self.bred = 0
        self.rules = of_problem(problem)
        self.best = new_best(self.rules)
        self.exits: Exits | None = None
        self.key: Key | None = None
        self.trace: list[Trace] = []
        self.layers: list[LayerSearch] = []
        self.frontier: Frontier | None = None
        self.polished: Exits | None = None

    def start(self, deadline_s: float) -> None:
        """The empty design, and a beam search in each layer while there is time."""
        if self.problem.feasible(()):
            self._take(())
        for index in range(len(self.problem.layers)):
            self.layers.append(LayerSearch.of(self.batch.layer(index), self.rules))
            beam(
                self.layers[-1].bits,
                self.rules,
                self.problem.objective,
                self.best,
                BEAM_WIDTH,
                deadline_s=deadline_s,
                clock=self.clock,
            )
            self.improved(index)
        self.frontier = Frontier(self.layers, self.best, self.improved)
        self.tree_words = sum(layer.words_below(()) for layer in self.layers)

    @property
    def endless(self) -> bool:
        return self.tree_words > FINITE_WORDS

    def look_around(self, deadline_s: float) -> None:
        self._search_locally(min(FIRST_WORDS, LOCAL_SHARE * self.tree_words), deadline_s)

    def prove(self, deadline_s: float) -> bool:
        words = self.layers[0].words
        share = ENDLESS_SHARE if self.endless else LOCAL_SHARE
        allowed, before = self.scout.choices * words, int(self.best.designs[0])

        def take_turns() -> None:
            nonlocal allowed, before
            counted = (int(self.best.designs[0]) - before) * words
            if counted >= TURN_WORDS:
                allowed, before = allowed + share * counted, int(self.best.designs[0])
                self._search_locally(allowed, deadline_s)

        return self.frontier.run(deadline_s, self.clock, lambda floor: floor >= self._bar(), take_turns)

    def _search_locally(self, words: float, deadline_s: float) -> None:
        """Until it has counted so many words in all."""
        while self.scout.choices * self.layers[0].words < words and self.clock() < deadline_s:
            known, before = self.scout.best, self.scout.choices
            if self.endless and 2 * self.bred < before:
                self.breeding.step()
                self.bred += self.scout.choices - before
            else:
                self.climb.step()
            if self.scout.best is not known and self.scout.keeps_all_limits:
                self._take_if_better(self.batch.exits(self.scout.best))

    def polish(self, deadline_s: float) -> None:
        if self.exits is None or self.exits == self.polished:
            return
        falling = falling_order(self.problem.instance)
        exits = refine(self.problem, self.exits, falling=falling, deadline_s=deadline_s, clock=self.clock)
        if exits != self.exits:
            self._take(exits)
        self.polished = self.exits

    def improved(self, index: int) -> None:
        """Take over what the compiled search has found in a layer."""
        if self.best.exits[0] >= 0:
            path = self.best.path[: self.best.exits[0]]
            self.best.exits[0] = -1
            self._take(self.problem.layers[index].exits(path))
            self.scout.merits(self.batch.genes_of(index, path)[None])

    def outcome(self, proven: bool) -> Outcome:
        open_floor = None if proven else self.frontier.floor
        floors = [] if open_floor is None else [self._first(open_floor)]
        if self.key is not None:
            floors.append(self.key[0])
        floor = min(floors, default=float("inf"))
        return Outcome(self.exits, self.key, floor, proven, int(self.best.designs[0]), tuple(self.trace))

    def _take_if_better(self, exits: Exits) -> None:
        if self.key is None or self.problem.key(exits) < self.key:
            self._take(exits)

    def _take(self, exits: Exits) -> None:
        self.exits, self.key = (
            exits,
            tuple(part if isinstance(part, (int, float)) else part.item() for part in self.problem.key(exits)),
        )
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
