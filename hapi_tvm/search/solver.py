"""From two tables and an SLA to a design: the shared-threshold search, then the refinement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search.describe import design_of, infeasible_message, space_text
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits, Instance, check_graph
from hapi_tvm.search.objective import Objective
from hapi_tvm.search.refine import refine
from hapi_tvm.search.scan import falling_order
from hapi_tvm.search.shared import SharedResult, search_shared

__all__ = ["search"]

SHARED_SHARE = 0.8
"""Of the time limit, what the shared-threshold search may use up; the refinement has the rest."""


def search(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    sla: SLA,
    *,
    grid: int = 64,
    time_limit_s: float = 30.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Design:
    """The best design found for ``sla``, the plain backbone being one of them.

    First exact, over designs whose exits share one of at most ``grid`` thresholds; then thresholds per
    exit by a local search that never makes it worse. ``Design.space`` says in words what was searched
    and, if time ran out, how far from the best it can be; ``proven_optimal`` is about the first stage.

    With ``max_accuracy_drop``: least mean latency, then accuracy, then fewer exits. Without: most
    accuracy, then least mean latency, then fewer exits. Same input, same answer, unless the clock stops it.

    Raises InfeasibleSLA, with the design that comes nearest to the latency budgets while it keeps the
    accuracy limit; RecordError where the records contradict each other.
    """
    started_s = clock()
    instance = Instance.from_tables(calibration, latency)
    check_graph(graph, calibration, latency)
    run = _Run(instance, grid, started_s + SHARED_SHARE * time_limit_s, started_s + time_limit_s, clock)
    objective = Objective.from_sla(sla, instance.samples)
    shared = run.shared(objective, run.shared_deadline_s)
    space = space_text(objective, graph, shared)
    start = shared.exits if shared.exits is not None else run.nearest(objective)
    if not objective.feasible(figures_of(instance, start)):
        nearest = design_of(instance, graph, sla, start, space=space, proven_optimal=False)
        raise InfeasibleSLA(infeasible_message(nearest, shared.proven), nearest)
    exits = run.refined(objective, start)
    return design_of(instance, graph, sla, exits, space=space, proven_optimal=shared.proven)


@dataclass(frozen=True, slots=True)
class _Run:
    instance: Instance
    grid: int
    shared_deadline_s: float
    deadline_s: float
    clock: Callable[[], float]

    def shared(self, objective: Objective, deadline_s: float) -> SharedResult:
        return search_shared(
            self.instance, objective, grid=self.grid, deadline_s=deadline_s, clock=self.clock
        )

    def refined(self, objective: Objective, exits: Exits) -> Exits:
        falling = falling_order(self.instance)
        return refine(
            self.instance, objective, exits, falling=falling, deadline_s=self.deadline_s, clock=self.clock
        )

    def nearest(self, objective: Objective) -> Exits:
        """Closest to the latency budgets within the accuracy limit. Thresholds per exit may meet
        budgets that no shared threshold meets. The plain backbone loses nothing, so there is one."""
        nearest = objective.nearest()
        return self.refined(nearest, self.shared(nearest, self.deadline_s).exits)
