"""Accuracy against mean latency: the designs that no other beats in both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hapi_tvm.errors import SLAError
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search.beam import beam
from hapi_tvm.search.choices import of_layer
from hapi_tvm.search.describe import design_of
from hapi_tvm.search.frontier import Frontier, LayerSearch
from hapi_tvm.search.instance import Exits, check_graph
from hapi_tvm.search.objective import Goal, Objective
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.refine import refine
from hapi_tvm.search.rules import of_problem
from hapi_tvm.search.scan import falling_order
from hapi_tvm.search.space import Space
from hapi_tvm.search.walk import Best, new_best, take_front

__all__ = ["Front", "grid_front", "joined", "pareto"]

BEAM_WIDTH = 16
PAIR_SCANS = 96
PROOF_SHARE = 0.5


def pareto(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    *,
    drop_confidence: float = 0.95,
    latency_quantile: float = 0.5,
    max_exits: int = 4,
    points: int = 16,
    space: Space | None = None,
    time_limit_s: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Design, ...]:
    """At most ``points`` designs by rising mean latency, none beaten by another in latency and accuracy.

    First every such design of the grid, by branch and bound for half of the time; then thresholds off the grid
    by local search at the accuracy of each point. The plain backbone competes like any other. Each
    design's SLA allows the accuracy drop that it has (at its upper limit of level ``drop_confidence``).
    """
    if points < 1 or not time_limit_s >= 0:
        raise SLAError(f"pareto: points={points} and time_limit_s={time_limit_s} must be at least 1 and 0")
    started_s = clock()
    loosest = SLA(
        max_accuracy_drop=1.0,
        drop_confidence=drop_confidence,
        max_exits=max_exits,
        latency_quantile=latency_quantile,
    )
    problem = Problem.of(calibration, latency, loosest, space or Space())
    check_graph(graph, calibration, latency)
    exact = grid_front(problem, deadline_s=started_s + PROOF_SHARE * time_limit_s, clock=clock)
    rough = _thin(list(exact.points), points)
    falling = falling_order(problem.instance)
    refined = [_refined(problem, exits, falling, started_s + time_limit_s, clock) for _, _, exits in rough]
    text = "accuracy against mean latency: " + (
        "every design of the grid that no other beats" if exact.proven else "branch and bound, stopped by the clock"
    )
    return tuple(
        _design(problem, graph, loosest, exits, text + "; then thresholds off the grid by local search")
        for _, _, exits in _thin(_front([*rough, *refined]), points)
    )


def joined(front: Sequence[Design], design: Design) -> tuple[Design, ...]:
    """``front`` with another design that was planned alike; those that another now beats are out. A search for one
    SLA may know better designs near it than a front that the clock stopped."""
    kept: list[Design] = []
    ordered = sorted((*front, design), key=lambda d: (d.predicted.mean_us, -d.predicted.accuracy, len(d.exits)))
    for each in ordered:
        if not kept or each.predicted.accuracy > kept[-1].predicted.accuracy:
            kept.append(each)
    return tuple(kept)


Point = tuple[int, int, Exits]
"""Sum of latencies in picoseconds, samples lost less samples gained, the design."""


@dataclass(frozen=True, slots=True)
class Front:
    """points: by rising latency. proven: they are all that the grid has."""

    points: tuple[Point, ...]
    proven: bool


def grid_front(
    problem: Problem, *, deadline_s: float = math.inf, clock: Callable[[], float] = time.perf_counter
) -> Front:
    """The designs on the grid that no other on it beats in mean latency and accuracy; the limits of the space
    hold, those of the SLA do not but for the number of exits. Of equals, one with the fewest exits."""
    problem = problem.asking(_anything(problem.objective, None))
    rules = of_problem(problem)
    best = new_best(rules)
    if problem.holds(()):
        figures = problem.figures(())
        take_front(rules, best, figures.total_ps, 0, 0, np.empty(0, dtype=np.int64), 0)
    points: dict[int, Point] = {}
    layers = [LayerSearch.of(of_layer(problem, layer), rules) for layer in problem.layers]
    for index, layer in enumerate(layers):
        beam(layer.bits, rules, problem.objective, best, BEAM_WIDTH, deadline_s=deadline_s, clock=clock)
        _collect(problem, index, best, points)
    frontier = Frontier(layers, best, lambda index: _collect(problem, index, best, points))
    proven = frontier.run(deadline_s, clock, lambda floor: False)
    _collect(problem, 0, best, points)
    return Front(tuple(_front(list(points.values()))), proven)


def _collect(problem: Problem, index: int, best: Best, points: dict[int, Point]) -> None:
    """Take over what layer ``index`` brought to the front; ``points`` is keyed by place in ``best.front_ps``."""
    if best.exits[0] < 0:
        return
    best.exits[0] = -1
    front_ps = best.front_ps
    for at in np.flatnonzero(front_ps[:-1] < np.append(2**62, front_ps[:-2])).tolist():
        known = points.get(at)
        if known is None or (known[0], len(known[2])) != (front_ps[at], best.front_exits[at]):
            exits = problem.layers[index].exits(best.front_path[at, : best.front_exits[at]])
            points[at] = (int(front_ps[at]), at - problem.instance.samples, exits)


def _refined(
    problem: Problem, exits: Exits, falling: np.ndarray, deadline_s: float, clock: Callable[[], float]
) -> Point:
    figures = problem.figures(exits)
    max_drop = (figures.lost - figures.gained) / problem.instance.samples
    within = problem.asking(replace(_anything(problem.objective, max_drop), goal=Goal.FASTEST))
    refined = refine(
        within, exits, falling=falling, pair_scans=PAIR_SCANS, rebuild=False, deadline_s=deadline_s, clock=clock
    )
    figures = problem.figures(refined)
    return figures.total_ps, figures.lost - figures.gained, refined


def _anything(objective: Objective, max_drop: float | None) -> Objective:
    """No limit but ``max_drop`` on the split itself, without allowance for its chance, and the number of exits."""
    return replace(objective, goal=Goal.FRONT, z=0.0, max_drop=max_drop, budgets_ps={})


def _front(points: list[Point]) -> list[Point]:
    """Points that no other beats in both, by rising latency; of equals, the one with fewer exits."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[0], point[1], len(point[2]))):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _thin(front: list[Point], points: int) -> list[Point]:
    """At most ``points`` of them, both ends kept, the nearest to even steps of latency."""
    if len(front) <= points:
        return front
    total_ps = np.array([point[0] for point in front])
    steps = np.linspace(total_ps[0], total_ps[-1], points)
    chosen = {int(np.argmin(np.abs(total_ps - step))) for step in steps}
    return [front[index] for index in sorted(chosen)]


def _design(problem: Problem, graph: ExitGraph, loosest: SLA, exits: Exits, space: str) -> Design:
    design = design_of(problem.instance, graph, loosest, exits, space=space, proven_optimal=False)
    allowed = min(1.0, max(0.0, design.predicted.accuracy_drop_upper))
    return replace(design, sla=replace(loosest, max_accuracy_drop=allowed))
