"""Accuracy against mean latency: the designs that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search.bitsets import ThresholdBits
from hapi_tvm.search.describe import design_of
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits, Instance, check_graph
from hapi_tvm.search.objective import Figures, Goal, Objective
from hapi_tvm.search.refine import refine
from hapi_tvm.search.scan import falling_order
from hapi_tvm.search.shared import beam, shared_thresholds
from hapi_tvm.search.tree import Tree

__all__ = ["pareto"]

GRID = 64
BEAM_WIDTH = 16
PAIR_SCANS = 96


def pareto(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    *,
    drop_confidence: float = 0.95,
    max_exits: int = 4,
    points: int = 16,
) -> tuple[Design, ...]:
    """At most ``points`` designs by rising mean latency, none beaten by another in latency and accuracy.

    Found by beam search at each shared threshold, then thresholds per exit by local search at the
    accuracy of each point; nothing is proven. The plain backbone competes like any other. Each
    design's SLA allows the accuracy drop that it has (at its upper limit of level ``drop_confidence``).
    """
    instance = Instance.from_tables(calibration, latency)
    check_graph(graph, calibration, latency)
    rough = _thin(_front(_shared_designs(instance, max_exits)), points)
    falling = falling_order(instance)
    refined = [_refined(instance, exits, max_exits, falling) for _, _, exits in rough]
    return tuple(
        _front_design(instance, graph, exits, drop_confidence, max_exits)
        for _, _, exits in _thin(_front([*rough, *refined]), points)
    )


Point = tuple[int, int, Exits]
"""Sum of latencies in picoseconds, samples lost less samples gained, the design."""


def _shared_designs(instance: Instance, max_exits: int) -> Iterator[Point]:
    objective = _fastest_within(instance, math.inf, max_exits)
    yield _point(instance, ())
    for threshold in shared_thresholds(instance, GRID):
        tree = Tree(instance, ThresholdBits.at(instance, threshold))
        for prefixes, nodes in beam(tree, objective, BEAM_WIDTH):
            figures = tree.figures(nodes, prefixes.path.shape[1] + 1)
            for row in _front_rows(figures):
                path = [*prefixes.path[nodes.parent[row]].tolist(), int(nodes.option[row])]
                exits = tuple((option, float(threshold)) for option in path)
                yield int(figures.total_ps[row]), int(figures.lost[row] - figures.gained[row]), exits


def _refined(instance: Instance, exits: Exits, max_exits: int, falling: np.ndarray) -> Point:
    figures = figures_of(instance, exits)
    objective = _fastest_within(instance, (figures.lost - figures.gained) / instance.samples, max_exits)
    return _point(
        instance, refine(instance, objective, exits, falling=falling, pair_scans=PAIR_SCANS, rebuild=False)
    )


def _fastest_within(instance: Instance, max_drop: float, max_exits: int) -> Objective:
    """Least mean latency with at most ``max_drop`` on the split itself: no allowance for its chance."""
    return Objective(Goal.FASTEST, instance.samples, 0.0, max_drop, budgets_ps={}, max_exits=max_exits)


def _point(instance: Instance, exits: Exits) -> Point:
    figures = figures_of(instance, exits)
    return figures.total_ps, figures.lost - figures.gained, tuple(exits)


def _front_rows(figures: Figures) -> np.ndarray:
    """Rows that no other row beats in both, by rising latency."""
    drop = figures.lost - figures.gained
    order = np.lexsort((drop, figures.total_ps))
    least = np.minimum.accumulate(drop[order])
    return order[np.append(True, least[1:] < least[:-1])]


def _front(points: Iterator[Point] | list[Point]) -> list[Point]:
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


def _front_design(
    instance: Instance, graph: ExitGraph, exits: Exits, drop_confidence: float, max_exits: int
) -> Design:
    loosest = SLA(max_accuracy_drop=1.0, drop_confidence=drop_confidence, max_exits=max_exits)
    space = "accuracy against mean latency: beam search over shared thresholds, then per-exit thresholds"
    design = design_of(instance, graph, loosest, exits, space=space, proven_optimal=False)
    allowed = min(1.0, max(0.0, design.predicted.accuracy_drop_upper))
    return replace(design, sla=replace(loosest, max_accuracy_drop=allowed))
