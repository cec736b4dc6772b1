"""Thresholds off the grid, and exits, by local search. No move is taken that makes the design worse."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import best_index, better
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.scan import Others, Scan

__all__ = ["refine"]

MAX_SWEEPS = 25
MOST_SHARED = 512

_NOTHING = (np.empty(0, dtype=np.int64), np.empty(0, dtype=bool))

Move = tuple[Others, int | None]
"""Exits that are held, and the option to scan beside them; None takes them as they are."""


def refine(
    problem: Problem,
    exits: Exits,
    *,
    falling: np.ndarray,
    pair_scans: int = 288,
    rebuild: bool = True,
    deadline_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Exits:
    """``exits``, or something better; ``exits`` must keep the SLA and the limits of the space.

    Moves, the cheap ones first: another threshold for one exit (every distinct confidence is tried), for
    two exits together (one of them at some quantiles only, about ``pair_scans`` tries in all), and, with
    ``rebuild``, an exit taken out, moved, given another kind, or added. Ends when no move helps, after
    MAX_SWEEPS sweeps, or at ``deadline_s`` on ``clock``. If the exits share their threshold, only that is
    moved, between its neighbours on the grid.

    falling: ``falling_order(problem.instance)``.
    """
    climb = _Climb(problem, exits, falling)
    if problem.space.shared:
        _retune_shared(climb, deadline_s, clock)
        return climb.exits
    neighbourhoods = [_retune, partial(_retune_pairs, scans=pair_scans)] + ([_rebuild] if rebuild else [])
    for _ in range(MAX_SWEEPS):
        for neighbourhood in neighbourhoods:
            before = climb.exits
            for others, option in neighbourhood(climb):
                if clock() >= deadline_s:
                    return climb.exits
                climb.attempt(others, option)
            if climb.exits != before:
                break
        else:
            break
    return climb.exits


class _Climb:
    """The best design so far, its key, and how to better them."""

    def __init__(self, problem: Problem, exits: Exits, falling: np.ndarray):
        self.problem, self.instance, self.falling = problem, problem.instance, falling
        self.objective = problem.objective
        self.exits = tuple(exits)
        self.key = problem.key(exits)

    def attempt(self, others: Others, option: int | None) -> None:
        """Take the best threshold for ``option`` beside ``others``, if that is better."""
        if option is None:
            if not self.problem.holds(others.exits):
                return
            figures = figures_of(self.instance, others.exits)
            key = self.objective.key(figures)
            if self.objective.feasible(figures) and better(key, self.key):
                self.key, self.exits = key, tuple(others.exits)
            return
        if not self.problem.holds((*others.exits, (option, 1.0))):
            return
        scan = Scan.of(self.instance, others, option, self.falling[:, option])
        key = self.objective.key(scan.figures)
        best = best_index(key, better(key, self.key) & self.objective.feasible(scan.figures))
        if best is not None:
            self.key = tuple(part[best].item() for part in key)
            scanned = (option, float(scan.threshold[best]))
            self.exits = (*others.exits[: scan.place], scanned, *others.exits[scan.place :])


def _retune_shared(climb: _Climb, deadline_s: float, clock: Callable[[], float]) -> None:
    """MOST_SHARED of the confidences between the grid's neighbours of the shared threshold."""
    placed = [option for option, threshold in climb.exits if threshold > 0]
    if not placed:
        return
    now = next(threshold for _, threshold in climb.exits if threshold > 0)
    grid = [float(layer.threshold.max()) for layer in climb.problem.layers]
    low, high = max((t for t in grid if t < now), default=0.0), min((t for t in grid if t > now), default=1.0)
    confidence = climb.instance.confidence[:, placed]
    between = np.unique(confidence[(confidence > low) & (confidence < high)])
    steps = np.linspace(0, len(between) - 1, min(len(between), MOST_SHARED)).round().astype(np.int64)
    start = climb.exits
    for threshold in between[steps].tolist():
        if clock() >= deadline_s:
            return
        exits = tuple((option, threshold if at > 0 else at) for option, at in start)
        climb.attempt(Others(exits, *_NOTHING), None)


def _retune(climb: _Climb) -> Iterator[Move]:
    for place in range(len(climb.exits)):
        yield Others.of(climb.instance, _without(climb.exits, place)), climb.exits[place][0]


def _retune_pairs(climb: _Climb, scans: int) -> Iterator[Move]:
    placed = [option for option, _ in climb.exits]
    if len(placed) < 2:
        return
    steps = max(3, scans // (len(placed) * (len(placed) - 1)))
    ranks = np.linspace(0, climb.instance.samples - 1, steps).round().astype(np.int64)
    for place, option in enumerate(placed):
        for threshold in np.unique(climb.instance.confidence[climb.falling[ranks, option], option]):
            for other in range(len(placed)):
                if other != place:
                    moved = (*climb.exits[:place], (option, float(threshold)), *climb.exits[place + 1 :])
                    yield Others.of(climb.instance, _without(moved, other)), placed[other]


def _rebuild(climb: _Climb) -> Iterator[Move]:
    start = climb.exits
    shortened = [Others.of(climb.instance, _without(start, place)) for place in range(len(start))]
    for others in shortened:
        yield others, None
    whole = [Others.of(climb.instance, start)] if len(start) < climb.objective.max_exits else []
    for others in (*shortened, *whole):
        taken = {int(climb.instance.candidate[option]) for option, _ in others.exits}
        for option, candidate in enumerate(climb.instance.candidate.tolist()):
            if candidate not in taken and climb.problem.allowed[option]:
                yield others, option


def _without(exits: Exits, place: int) -> Exits:
    return (*exits[:place], *exits[place + 1 :])
