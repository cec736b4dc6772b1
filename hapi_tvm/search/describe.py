"""Search results as records and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal

from hapi_tvm.errors import RecordError
from hapi_tvm.records import DROP_LIMIT, LATENCY_LIMITS, SLA, Design, ExitGraph, Option, PlacedExit
from hapi_tvm.search.evaluator import predict
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Goal
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategy import Outcome

__all__ = ["design_of", "exits_of", "infeasible_message", "limit_needed", "space_text"]


def design_of(
    instance: Instance, graph: ExitGraph, sla: SLA, exits: Exits, *, space: str, proven_optimal: bool
) -> Design:
    placed = []
    for index, threshold in exits:
        option = instance.options[index]
        candidate = graph.candidates[option.candidate]
        placed.append(
            PlacedExit(candidate.name, option.candidate, option.kind, float(threshold), candidate.flops_share)
        )
    predicted = predict(instance, exits, sla.drop_confidence)
    return Design(tuple(placed), sla, predicted, space=space, proven_optimal=proven_optimal)


def exits_of(design: Design, options: Sequence[Option]) -> Exits:
    """The other way: places of the design's exits in ``options``. Raises RecordError where one is not among them."""
    index = {option: place for place, option in enumerate(options)}
    exits = []
    for place, placed in enumerate(design.exits):
        option = Option(placed.candidate, placed.kind)
        if option not in index:
            raise RecordError(
                f"Design.exits[{place}] is {placed.name}, a branch of kind {placed.kind!r} at candidate "
                f"{placed.candidate}, which the tables lack; give the tables that it was searched on"
            )
        exits.append((index[option], placed.threshold))
    return tuple(exits)


def space_text(problem: Problem, outcome: Outcome) -> str:
    """Which designs were searched, and how completely."""
    space, options = problem.space, problem.instance.options
    kinds = len({option.kind for option in options} if space.kinds is None else set(space.kinds))
    thresholds = (
        f"one threshold of {len(problem.layers)} quantiles"
        if space.shared
        else f"a threshold of {space.grid} quantiles each"
    )
    return (
        f"up to {problem.objective.max_exits} exits of {len(problem.instance.reach_ps) - 1} candidates x {kinds} "
        f"{'kind' if kinds == 1 else 'kinds'}, {thresholds}: {_completeness(problem, outcome)}; "
        "then thresholds off the grid by local search"
    )


def _completeness(problem: Problem, outcome: Outcome) -> str:
    if outcome.proven:
        return "searched in full" + (", none meets the SLA" if outcome.exits is None else "")
    if outcome.key is None:
        return "stopped by the clock before one was found that meets the SLA"
    gap = problem.objective.gap(outcome.key[0], outcome.floor)
    if problem.objective.goal is Goal.ACCURATE:
        return f"stopped by the clock, accuracy at most {100 * gap:.2f} points below the best of these"
    return f"stopped by the clock, mean latency at most {gap:.1%} above the best of these"


def infeasible_message(nearest: Design, closest: Mapping[str, Design], proven: bool) -> str:
    """Which budgets are missed, by how much, and what to do about it. closest: as in ``InfeasibleSLA``."""
    sla, predicted = nearest.sla, nearest.predicted
    missed, takes = [], []
    for metric, budget_us in sla.budgets_us.items():
        predicted_us = getattr(predicted, f"{metric}_us")
        if predicted_us > budget_us:
            missed.append(f"{LATENCY_LIMITS[metric]}={budget_us / 1000:.4g}")
            takes.append(f"{predicted_us / 1000:.4g} ms" + ("" if metric == "mean" else f" {metric}"))
    drop_missed = sla.max_accuracy_drop is not None and predicted.accuracy_drop_upper > sla.max_accuracy_drop
    if drop_missed:
        takes.append(f"{predicted.accuracy_drop_upper:.4g} accuracy drop")
    names = ", ".join(placed.name for placed in nearest.exits) or "the plain backbone"
    return "".join(
        (
            "no design meets " if proven else "no design was found in time that meets ",
            ", ".join(missed) or "the accuracy limit",
            "" if sla.max_accuracy_drop is None else f" within max_accuracy_drop={sla.max_accuracy_drop:.4g}",
            "; the fastest takes " if len(sla.budgets_us) == 1 and not drop_missed else "; the nearest takes ",
            ", ".join(takes),
            f" ({names} only): " if len(nearest.exits) == 1 else f" ({names}): ",
            "lift a limit of the space"
            if not missed
            else "raise the budget"
            if len(missed) == 1
            else "raise the budgets",
            "" if sla.max_accuracy_drop is None else ", or allow a larger accuracy drop",
            _enough(closest) if len(sla.budgets_us) + (sla.max_accuracy_drop is not None) > 1 else "",
        )
    )


def _enough(closest: Mapping[str, Design]) -> str:
    """What each limit would have to be if the others stay; nothing where that is of no use."""
    needed = {field: limit_needed(design, field) for field, design in closest.items() if _keeps_others(design, field)}
    changes = [f"{field}={value:.4g}" for field, value in needed.items() if field != DROP_LIMIT or value <= 1]
    return f"; one of these alone would do: {', '.join(changes)}" if changes else ""


def _keeps_others(design: Design, field: str) -> bool:
    sla, predicted = design.sla, design.predicted
    kept = {LATENCY_LIMITS[metric]: getattr(predicted, f"{metric}_us") <= us for metric, us in sla.budgets_us.items()}
    kept[DROP_LIMIT] = sla.max_accuracy_drop is None or predicted.accuracy_drop_upper <= sla.max_accuracy_drop
    return all(holds for name, holds in kept.items() if name != field)


def limit_needed(design: Design, field: str) -> float:
    """The least limit that a design keeps, for a field of ``SLA`` in its unit; rounded up to four digits, so that
    what is printed is enough."""
    predicted = design.predicted
    if field == DROP_LIMIT:
        return _rounded_up(max(predicted.accuracy_drop_upper, 0.0))
    (metric,) = (metric for metric, limit in LATENCY_LIMITS.items() if limit == field)
    return _rounded_up(getattr(predicted, f"{metric}_us") / 1000)


def _rounded_up(value: float) -> float:
    exact = Decimal(repr(value))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), ROUND_CEILING)) if exact else 0.0
