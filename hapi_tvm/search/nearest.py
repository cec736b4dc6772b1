"""What comes closest to an SLA that no design of the grid keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hapi_tvm.errors import InfeasibleSLA, SLAError
from hapi_tvm.records import DROP_LIMIT
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import Objective
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategy import Outcome

__all__ = ["Nearest", "nearest_to"]


@dataclass(frozen=True, slots=True)
class Nearest:
    """exits, closest: as ``nearest`` and ``closest`` of ``InfeasibleSLA``. Their thresholds may lie off the grid,
    so one of them may keep the SLA after all."""

    exits: Exits
    closest: Mapping[str, Exits]


def nearest_to(problem: Problem, *, seconds: float, clock: Callable[[], float]) -> Nearest:
    """The design nearest to the latency budgets within the accuracy limit; where exits that must be there leave
    none, the most accurate. ``seconds`` for each search of it, and twice as long for all of ``closest`` together.
    Raises SLAError where no design keeps the limits of the space, InfeasibleSLA where none was found in time."""

    def solved(objective: Objective, seconds: float) -> Outcome:
        return Exact().solve(problem.asking(objective), seconds=seconds, clock=clock)

    objective = problem.objective
    nearest = solved(objective.nearest(), seconds)
    if nearest.exits is None:
        nearest = solved(objective.alone(DROP_LIMIT).closest_to(DROP_LIMIT), seconds)
    if nearest.exits is None:
        space = f"exits at {sorted(problem.space.must)}, max_exits={objective.max_exits}"
        space += f", max_bytes={problem.space.max_bytes}"
        if nearest.proven:
            raise SLAError(f"Space: no design has {space}; ask for fewer exits, or allow more")
        raise InfeasibleSLA(f"no design was found in {seconds} s that has {space}; give the search more time")
    closest = {}
    for limit in objective.limits:
        for asked in (objective.closest_to(limit), objective.alone(limit).closest_to(limit)):
            found = solved(asked, seconds / len(objective.limits)).exits
            if found is not None:
                closest[limit] = found
                break
    return Nearest(nearest.exits, closest)
