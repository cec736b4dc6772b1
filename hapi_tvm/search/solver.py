"""From two tables and an SLA to a design."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hapi_tvm.errors import InfeasibleSLA, SLAError
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search.describe import design_of, infeasible_message, space_text
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.instance import Exits, check_graph
from hapi_tvm.search.nearest import nearest_to
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.space import Space
from hapi_tvm.search.strategy import Strategy

__all__ = ["Solution", "search", "solve"]


@dataclass(frozen=True, slots=True)
class Solution:
    """gap: how far the design may be from the best of the grid, as ``Objective.gap``: a share of the latency where
    the SLA limits the accuracy drop, else a share of the samples; infinite where nothing is known."""

    design: Design
    gap: float


def search(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    sla: SLA,
    *,
    space: Space | None = None,
    strategy: Strategy | None = None,
    time_limit_s: float = 30.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Design:
    """The best design found for ``sla``, the plain backbone being one of them (unless ``space`` rules it out).

    space: ``Space()`` unless given. strategy: ``Exact()`` unless given. ``Design.space`` says in words what was
    searched and, if time ran out, how far from the best it can be; ``proven_optimal`` is about the grid, and the
    design's thresholds may lie off it where that is better.

    With ``max_accuracy_drop``: least mean latency, then accuracy, then fewer exits. Without: most
    accuracy, then least mean latency, then fewer exits. Same input, same answer, unless the clock stops it.

    Raises InfeasibleSLA, with the design that comes nearest to the latency budgets while it keeps the accuracy
    limit and, for each limit, the one that comes closest to it (see ``InfeasibleSLA``);
    RecordError where the records contradict each other; SLAError where the SLA and the space do.
    """
    return solve(
        calibration,
        latency,
        graph,
        sla,
        space=space,
        strategy=strategy,
        time_limit_s=time_limit_s,
        seed=seed,
        clock=clock,
    ).design


def solve(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    sla: SLA,
    *,
    space: Space | None = None,
    strategy: Strategy | None = None,
    time_limit_s: float = 30.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Solution:
    """``search``, with the gap as a number."""
    if not time_limit_s >= 0:
        raise SLAError(f"search: time_limit_s={time_limit_s} must be a number of seconds, not negative")
    problem = Problem.of(calibration, latency, sla, space or Space())
    check_graph(graph, calibration, latency)
    strategy = strategy or Exact()
    outcome = strategy.solve(problem, seconds=time_limit_s, seed=seed, clock=clock)
    text = space_text(problem, outcome)

    def described(exits: Exits) -> Design:
        return design_of(problem.instance, graph, sla, exits, space=text, proven_optimal=outcome.proven)

    if outcome.exits is not None:
        return Solution(described(outcome.exits), problem.objective.gap(outcome.key[0], outcome.floor))
    near = nearest_to(problem, seconds=time_limit_s, clock=clock)
    kept = [exits for exits in (near.exits, *near.closest.values()) if problem.feasible(exits)]
    if kept:
        return Solution(described(min(kept, key=problem.key)), 0.0 if outcome.proven else math.inf)
    nearest = replace(described(near.exits), proven_optimal=False)
    closest = {limit: replace(described(exits), proven_optimal=False) for limit, exits in near.closest.items()}
    raise InfeasibleSLA(infeasible_message(nearest, closest, outcome.proven), nearest, closest)
