"""The search's choice, and safer designs in case that it cannot be certified."""

from __future__ import annotations

from dataclasses import replace

from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, Ladder, LatencyTable
from hapi_tvm.search.solver import search
from hapi_tvm.search.space import Space
from hapi_tvm.search.strategy import Strategy

__all__ = ["ladder"]

SHARES = (0.25, 0.5, 0.75)  # of the accuracy drop that is allowed


def ladder(
    calibration: CalibrationTable,
    latency: LatencyTable,
    graph: ExitGraph,
    sla: SLA,
    *,
    space: Space | None = None,
    strategy: Strategy | None = None,
    time_limit_s: float = 30.0,
    seed: int = 0,
) -> Ladder:
    """The best design for ``sla``, and before it those for SHARES of ``sla.max_accuracy_drop`` (which is given).

    Few, so that the safest is likely to pass a test that is worth passing; each keeps every other line of the SLA.
    A rung is left out where nothing meets it, where it is the one after it, and where it is the plain backbone: that
    needs no certificate. Up to ``len(SHARES) + 1`` searches of ``time_limit_s`` each. Raises what ``search`` raises
    for ``sla`` itself.
    """

    def planned(share: float) -> Design:
        stricter = replace(sla, max_accuracy_drop=share * sla.max_accuracy_drop)
        design = search(
            calibration,
            latency,
            graph,
            stricter,
            space=space,
            strategy=strategy,
            time_limit_s=time_limit_s,
            seed=seed,
        )
        return replace(design, sla=sla)

    designs = [planned(1.0)]
    for share in reversed(SHARES):
        try:
            safer = planned(share)
        except InfeasibleSLA:
            break
        if not safer.exits:
            break
        if safer.exits != designs[0].exits:
            designs.insert(0, safer)
    return Ladder(tuple(designs))
