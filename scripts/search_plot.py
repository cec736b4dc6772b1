"""The plot of ``bench_search.py``: a panel an instance, a line a strategy, how far it was from the best value when."""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hapi_tvm.search.objective import Goal
from search_race import EXACT, Result

if TYPE_CHECKING:
    from bench_search import Row

__all__ = ["draw"]

COLUMNS = 4
LINEAR_PERCENT = 0.1
FIRST_S = 0.001


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Mean latency above the best known value in percent of it, or accuracy below it in points; linear up to
    LINEAR_PERCENT, logarithmic above. A line begins with the first design that keeps the SLA."""
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    names = list(rows[0].results(rows[0].seconds[-1]))
    colors = {name: "black" if name == EXACT else f"C{index}" for index, name in enumerate(names)}
    for axis, row in zip(axes.flat, rows, strict=False):
        _panel(axis, row, colors)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def _panel(axis, row: Row, colors: dict[str, str]) -> None:
    results = row.results(row.seconds[-1])
    known = [result.outcome.key for result in results.values() if result.outcome.key is not None]
    accurate = row.problem.objective.goal is Goal.ACCURATE
    axis.set_title(row.case.name, fontsize="medium")
    axis.set_ylabel("points below the best" if accurate else "% above the best", fontsize="small")
    axis.set_xlabel("seconds", fontsize="small")
    axis.set_xscale("log")
    axis.set_xlim(FIRST_S, row.seconds[-1])
    axis.set_yscale("symlog", linthresh=LINEAR_PERCENT)
    if not known:
        return
    best = row.value(min(known))
    for name in reversed(results):  # the exact one on top
        points = _steps(row, results[name], best, accurate)
        if points:
            axis.step(*zip(*points, strict=True), where="post", color=colors[name], linewidth=1.2)
    axis.set_ylim(bottom=-LINEAR_PERCENT / 5)


def _steps(row: Row, result: Result, best: float, accurate: bool) -> list[tuple[float, float]]:
    """(seconds, distance from the best), the last one drawn out to the end."""
    values = [(max(point.seconds, FIRST_S), row.value(point.key)) for point in result.outcome.trace]
    steps = [(at, 100 * (value - best) if accurate else 100 * (value / best - 1)) for at, value in values]
    return [*steps, (row.seconds[-1], steps[-1][1])] if steps else []
