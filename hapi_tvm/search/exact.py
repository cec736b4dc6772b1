"""Branch and bound over the whole space: the best design, or the best so far and how far off it can be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hapi_tvm.search.beam import beam
from hapi_tvm.search.choices import of_layer
from hapi_tvm.search.frontier import Floor, Frontier, LayerSearch
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.nodes import new_best
from hapi_tvm.search.objective import Goal, Key
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.refine import refine
from hapi_tvm.search.rules import NO_LIMIT, of_problem
from hapi_tvm.search.scan import falling_order
from hapi_tvm.search.strategy import Outcome, Trace

__all__ = ["Exact"]

BEAM_WIDTH = 8
POLISH_SHARE = 0.2
"""Of the time, what thresholds off the grid may take before the proof, and again behind it."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A beam search, thresholds off the grid from there, then branch and bound to the proof, and thresholds off the
    grid again. Memory: N * (M + C) / 8 bytes a layer, and at most 100 MiB of open nodes beside.

    polish: False stays on the grid. Nothing here is random, so the seed changes nothing.
    """

    polish: bool = True
    name: ClassVar[str] = "exact"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        run = _Run(problem, clock)
        run.start(clock() + 0.5 * seconds)
        if self.polish:
            run.polish(clock() + POLISH_SHARE * seconds)
        proven = run.prove(run.started_s + (1 - POLISH_SHARE if self.polish else 1) * seconds)
        if self.polish:
            run.polish(run.started_s + seconds)
        return run.outcome(proven)


class _Run:
    """The best design so far, on the grid or off it, and what was proven."""

    def __init__(self, problem: Problem, clock: Callable[[], float]):
        self.problem, self.clock, self.started_s = problem, clock, clock()
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
        for index, layer in enumerate(self.problem.layers):
            self.layers.append(LayerSearch.of(of_layer(self.problem, layer), self.rules))
            if self.clock() < deadline_s:
                beam(self.layers[-1].bits, self.rules, self.problem.objective, self.best, BEAM_WIDTH)
                self.improved(index)
        self.frontier = Frontier(self.layers, self.best, self.improved)

    def prove(self, deadline_s: float) -> bool:
        return self.frontier.run(deadline_s, self.clock, lambda floor: floor >= self._bar())

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

    def outcome(self, proven: bool) -> Outcome:
        open_floor = None if proven else self.frontier.floor
        floors = [] if open_floor is None else [self._first(open_floor)]
        if self.key is not None:
            floors.append(self.key[0])
        floor = min(floors, default=float("inf"))
        return Outcome(self.exits, self.key, floor, proven, int(self.best.designs[0]), tuple(self.trace))

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
