"""Stage 2: a threshold for each exit, by local search. No move is taken that makes the design worse."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Objective, best_index, better
from hapi_tvm.search.scan import Others, Scan

__all__ = ["refine"]

MAX_SWEEPS = 25

Move = tuple[Others, int | None]
"""Exits that are held, and the option to scan beside them; None takes them as they are."""


def refine(
    instance: Instance,
    objective: Objective,
    exits: Exits,
    *,
    falling: np.ndarray,
    pair_scans: int = 288,
    rebuild: bool = True,
    deadline_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Exits:
    """``exits``, or something better under ``objective``; ``exits`` must keep the SLA.

    Moves, the cheap ones first: another threshold for one exit (every distinct confidence is tried), for
    two exits together (one of them at some quantiles only, about ``pair_scans`` tries in all), and, with
    ``rebuild``, an exit taken out, moved, given another kind, or added. Ends when no move helps, after
    MAX_SWEEPS sweeps, or at ``deadline_s`` on ``clock``.

    falling: ``falling_order(instance)``.
    """
    climb = _Climb(instance, objective, exits, falling)
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

    def __init__(self, instance: Instance, objective: Objective, exits: Exits, falling: np.ndarray):
        self.instance, self.objective, self.falling = instance, objective, falling
        self.exits = tuple(exits)
        self.key = objective.key(figures_of(instance, exits))

    def attempt(self, others: Others, option: int | None) -> None:
        """Take the best threshold for ``option`` beside ``others``, if that is better."""
        if option is None:
            figures = figures_of(self.instance, others.exits)
            key = self.objective.key(figures)
            if self.objective.feasible(figures) and better(key, self.key):
                self.key, self.exits = key, tuple(others.exits)
            return
        scan = Scan.of(self.instance, others, option, self.falling[:, option])
        key = self.objective.key(scan.figures)
        best = best_index(key, better(key, self.key) & self.objective.feasible(scan.figures))
        if best is not None:
            self.key = tuple(part[best].item() for part in key)
            scanned = (option, float(scan.threshold[best]))
            self.exits = (*others.exits[: scan.place], scanned, *others.exits[scan.place :])


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
            if candidate not in taken:
                yield others, option


def _without(exits: Exits, place: int) -> Exits:
    return (*exits[:place], *exits[place + 1 :])
