"""Every design of a problem, one after the other, each put through the evaluator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hapi_tvm.search.instance import Exits
from hapi_tvm.search.problem import Problem


def designs(problem: Problem) -> Iterator[Exits]:
    """All that the limits of the space allow; the empty one once."""
    if problem.holds(()):
        yield ()
    for layer in problem.layers:
        at: dict[int, list] = {}
        for option, threshold in zip(layer.option.tolist(), layer.threshold.tolist(), strict=True):
            at.setdefault(int(problem.instance.candidate[option]), [None]).append((option, threshold))
        for picked in itertools.product(*(at[candidate] for candidate in sorted(at))):
            exits = tuple(choice for choice in picked if choice is not None)
            if exits and problem.holds(exits):
                yield exits


def best_key(problem: Problem):
    """The least key of a design that keeps the SLA, or None."""
    figures = (problem.figures(exits) for exits in designs(problem))
    return min((problem.objective.key(f) for f in figures if problem.objective.feasible(f)), default=None)


def front(problem: Problem) -> list[tuple[int, int, int]]:
    """(latency sum, drop, exits) of the designs that no other beats in the first two; the fewest exits of equals."""
    rows = []
    for exits in designs(problem):
        figures = problem.figures(exits)
        rows.append((figures.total_ps, figures.lost - figures.gained, figures.exits))
    kept = []
    for row in sorted(rows):
        if not kept or row[1] < kept[-1][1]:
            kept.append(row)
    return kept
