"""Search results as records and sentences."""

from __future__ import annotations

from hapi_tvm.records import SLA, Design, ExitGraph, PlacedExit
from hapi_tvm.search.evaluator import predict
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Goal, Objective
from hapi_tvm.search.shared import SharedResult

__all__ = ["design_of", "infeasible_message", "space_text"]


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


def space_text(objective: Objective, graph: ExitGraph, shared: SharedResult) -> str:
    """Which designs were searched, and how completely."""
    kinds = len(graph.kinds)
    return (
        f"shared threshold, {shared.thresholds} quantiles, up to {objective.max_exits} exits of "
        f"{len(graph.candidates)} candidates x {kinds} {'kind' if kinds == 1 else 'kinds'}: "
        f"{_completeness(objective, shared)}; then exits and per-exit thresholds by local search"
    )


def _completeness(objective: Objective, shared: SharedResult) -> str:
    if shared.proven:
        return "searched in full" + (", none meets the SLA" if shared.exits is None else "")
    if shared.best is None:
        return "stopped by the clock before one was found that meets the SLA"
    if objective.goal is Goal.FASTEST:
        above = shared.best / shared.floor - 1 if shared.floor > 0 else float("inf")
        return f"stopped by the clock, mean latency at most {above:.1%} above the best of these"
    if objective.goal is Goal.ACCURATE:
        behind = (shared.best - shared.floor) / objective.samples
        return f"stopped by the clock, accuracy at most {100 * behind:.2f} points below the best of these"
    return "stopped by the clock"


def infeasible_message(nearest: Design, proven: bool) -> str:
    """Which budgets are missed, by how much, and what to do about it."""
    sla, predicted = nearest.sla, nearest.predicted
    missed, takes = [], []
    for metric, budget_us in sla.budgets_us.items():
        predicted_us = getattr(predicted, f"{metric}_us")
        if predicted_us > budget_us:
            missed.append(f"{metric}_latency_ms={budget_us / 1000:.4g}")
            takes.append(f"{predicted_us / 1000:.4g} ms" + ("" if metric == "mean" else f" {metric}"))
    names = ", ".join(placed.name for placed in nearest.exits) or "the plain backbone"
    return "".join(
        (
            "no design meets " if proven else "no design was found in time that meets ",
            ", ".join(missed),
            "" if sla.max_accuracy_drop is None else f" within max_accuracy_drop={sla.max_accuracy_drop:.4g}",
            "; the fastest takes " if len(sla.budgets_us) == 1 else "; the nearest takes ",
            ", ".join(takes),
            f" ({names} only): " if len(nearest.exits) == 1 else f" ({names}): ",
            "raise the budget" if len(missed) == 1 else "raise the budgets",
            "" if sla.max_accuracy_drop is None else ", or allow a larger accuracy drop",
        )
    )
