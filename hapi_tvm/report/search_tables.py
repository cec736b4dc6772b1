"""What a search found, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from hapi_tvm.records import Design, Prediction
from hapi_tvm.report.html import format_us
from hapi_tvm.report.summary import add_row, new_table

__all__ = ["found_tables", "front_table"]


def found_tables(design: Design, plain: Prediction) -> RenderableType:
    """The design against the plain backbone, then its exits; all as predicted on the calibration split."""
    return Group(_comparison(design.predicted, plain), _exits(design))


def _comparison(predicted: Prediction, plain: Prediction) -> Table:
    table = new_table("predicted on the calibration split", "plain", "design", "design / plain")
    add_row(
        table,
        "accuracy",
        f"{100 * plain.accuracy:.2f} %",
        f"{100 * predicted.accuracy:.2f} %",
        f"{-100 * predicted.accuracy_drop:+.2f} points",
    )
    for metric in ("mean", "p50", "p95", "p99", "worst", "deadline"):
        before_us, after_us = getattr(plain, f"{metric}_us"), getattr(predicted, f"{metric}_us")
        ratio = f"{after_us / before_us:.2f}" if before_us else ""
        name = metric if metric == "deadline" else f"{metric} latency"
        add_row(table, name, format_us(before_us), format_us(after_us), ratio)
    return table


def _exits(design: Design) -> Table:
    table = new_table("exit", "branch", "FLOPs before", "threshold", "leave here")
    rates = [f"{100 * rate:.1f} %" for rate in design.predicted.exit_rates]
    for placed, rate in zip(design.exits, rates, strict=False):
        add_row(table, placed.name, placed.kind, f"{100 * placed.flops_share:.1f} %", f"{placed.threshold:.4f}", rate)
    add_row(table, "end of the backbone", "", "100.0 %", "", rates[-1])
    return table


def front_table(front: Sequence[Design]) -> Table:
    """One row a design, by rising mean latency."""
    table = new_table("front: exits and thresholds", "mean latency", "p95", "worst", "accuracy", "drop")
    for design in front:
        predicted = design.predicted
        exits = ", ".join(f"{placed.name} {placed.threshold:.4f}" for placed in design.exits)
        add_row(
            table,
            exits or "the plain backbone",
            *(format_us(us) for us in (predicted.mean_us, predicted.p95_us, predicted.worst_us)),
            f"{100 * predicted.accuracy:.2f} %",
            f"{100 * predicted.accuracy_drop:+.2f} points",
        )
    return table
