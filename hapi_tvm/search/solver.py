"""From two tables and an SLA to a design."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from hapi_tvm.errors import InfeasibleSLA, SLAError
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search.describe import design_of, infeasible_message, space_text
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.instance import check_graph
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.space import Space
from hapi_tvm.search.strategy import Outcome, Strategy

__all__ = ["search"]


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

    Raises InfeasibleSLA, with the design that comes nearest to the latency budgets while it keeps the
    accuracy limit; RecordError where the records contradict each other; SLAError where the SLA and the space do.
    """
    problem = Problem.of(calibration, latency, sla, space or Space())
    check_graph(graph, calibration, latency)
    strategy = strategy or Exact()
    outcome = strategy.solve(problem, seconds=time_limit_s, seed=seed, clock=clock)
    if outcome.exits is None:
        raise _infeasible(problem, graph, sla, outcome, time_limit_s, clock)
    text = space_text(problem, outcome)
    return design_of(problem.instance, graph, sla, outcome.exits, space=text, proven_optimal=outcome.proven)


def _infeasible(
    problem: Problem,
    graph: ExitGraph,
    sla: SLA,
    outcome: Outcome,
    seconds: float,
    clock: Callable[[], float],
) -> InfeasibleSLA:
    """With the design nearest to the latency budgets within the accuracy limit; where exits that must be there
    leave none, without that limit."""
    for objective in (problem.objective.nearest(), replace(problem.objective.nearest(), max_drop=None)):
        nearest = Exact().solve(problem.asking(objective), seconds=seconds, clock=clock)
        if nearest.exits is not None:
            design = design_of(
                problem.instance, graph, sla, nearest.exits, space=space_text(problem, outcome), proven_optimal=False
            )
            return InfeasibleSLA(infeasible_message(design, outcome.proven), design)
    limits = f"max_exits={problem.objective.max_exits}, max_bytes={problem.space.max_bytes}"
    raise SLAError(f"Space: no design has exits at {sorted(problem.space.must)} within {limits}; ask for fewer")
