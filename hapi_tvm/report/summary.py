"""The short tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hapi_tvm.records import ExitGraph
from hapi_tvm.report.html import format_us
from hapi_tvm.report.schema import Report

__all__ = ["add_row", "candidates_table", "new_table", "print_table", "summary"]


_PIPE_WIDTH = 200


def new_table(*columns: str) -> Table:
    """First column left-aligned, the others right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Names come from a user's model: never read them as rich markup."""
    table.add_row(*(Text(cell) for cell in cells))


def print_table(table: RenderableType) -> None:
    """To stdout, as wide as the terminal; as wide as it needs where there is none, for grep and diff."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def summary(report: Report) -> RenderableType:
    """Plain backbone against the artifact, then the exits, then the certificate if one was asked for."""
    certificate = report["certificate"]
    parts = [_comparison(report), _exits(report)]
    return Group(*parts, *([] if certificate is None else [Text(certificate["verdict"] + "\n")]))


def _comparison(report: Report) -> Table:
    plain, hapi = report["backbone"], report["hapi"]
    table = new_table("measured on the test split", "plain", "hapi", "hapi / plain")
    accuracies = (plain["test_accuracy"], hapi["test_accuracy"])
    add_row(
        table,
        "accuracy",
        *(f"{100 * accuracy:.2f} %" for accuracy in accuracies),
        f"{100 * (accuracies[1] - accuracies[0]):+.2f} points",
    )
    for metric in ("mean", "p50", "p95"):
        before_us, after_us = plain["latency_us"][metric], hapi["latency_us"][metric]
        add_row(
            table,
            f"{metric} latency",
            format_us(before_us),
            format_us(after_us),
            f"{after_us / before_us:.2f}",
        )
    return table


def _exits(report: Report) -> Table:
    table = new_table("exit", "branch", "FLOPs before", "threshold", "leave here")
    for cells in _exit_rows(report):
        add_row(table, *cells)
    return table


def _exit_rows(report: Report) -> Iterator[tuple[str, ...]]:
    rates = report["hapi"]["exit_rates"]
    for placed, rate in zip(report["design"]["exits"], rates, strict=False):
        yield (
            placed["name"],
            placed["branch"],
            f"{100 * placed['flops_share']:.1f} %",
            f"{placed['threshold']:.4f}",
            f"{100 * rate:.1f} %",
        )
    yield "end of the backbone", "", "100.0 %", "", f"{100 * rates[-1]:.1f} %"


def candidates_table(graph: ExitGraph) -> Table:
    """Every place where an exit may stand, in network order."""
    table = new_table("exit", "tensor", "shape", "FLOPs before", "share")
    for candidate in graph.candidates:
        add_row(
            table,
            candidate.name,
            candidate.tensor,
            "x".join(str(size) for size in candidate.shape),
            f"{candidate.flops_before:,}",
            f"{100 * candidate.flops_share:.1f} %",
        )
    return table
