"""Geometry of the page's three figures. The template draws them; nothing here knows colours or markup.

Lengths are SVG user units (pixels at the page's full width), y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hapi_tvm.report.schema import Report

__all__ = ["Bars", "Scale", "Scatter", "Stack", "exit_bars", "pareto_scatter", "round_ticks", "time_stack"]

_SCATTER_WIDTH, _SCATTER_HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 14, 48
_ROW = 34
_LEAST_ACCURACY_SHOWN = 0.05


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] to [start, end] linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """About ``about`` multiples of 1, 2 or 5 times a power of ten that enclose [low, high]; low < high."""
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999) * magnitude
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    value: float


@dataclass(frozen=True, slots=True)
class Mark:
    x: float
    y: float
    accuracy: float
    mean_latency_us: float
    exits: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """Accuracy over mean latency. front: the predicted Pareto front, fastest first; path: its staircase.

    hidden: designs of the front below the accuracies shown.
    """

    width: int
    height: int
    left: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    front: tuple[Mark, ...]
    path: str
    predicted: Mark
    measured: Mark
    plain: Mark
    hidden: int


def pareto_scatter(report: Report) -> Scatter:
    """The front and the chosen design as predicted, the design and the plain backbone as measured."""
    exits = len(report["design"]["exits"])
    hapi, plain, predicted = report["hapi"], report["backbone"], report["predicted"]
    singles = (
        (predicted["accuracy"], predicted["mean_latency_us"], exits),
        (hapi["test_accuracy"], hapi["latency_us"]["mean"], exits),
        (plain["test_accuracy"], plain["latency_us"]["mean"], 0),
    )
    best = max(accuracy for accuracy, _, _ in singles)
    lowest = min(accuracy for accuracy, _, _ in singles)
    floor = best - max(_LEAST_ACCURACY_SHOWN, 3 * (best - lowest))
    front = sorted(
        ((p["accuracy"], p["mean_latency_us"], p["exits"]) for p in report["pareto"]),
        key=lambda point: point[1],
    )
    shown = [point for point in front if point[0] >= floor]
    accuracies = [point[0] for point in (*singles, *shown)]
    x_values = round_ticks(0.0, 1.02 * max(point[1] for point in (*singles, *shown)), 6)
    margin = 0.002
    y_values = round_ticks(min(accuracies) - margin, max(accuracies) + margin, 5)
    x = Scale(x_values[0], x_values[-1], _LEFT, _SCATTER_WIDTH - _RIGHT)
    y = Scale(y_values[0], y_values[-1], _SCATTER_HEIGHT - _BOTTOM, _TOP)
    marks = [Mark(x(us), y(accuracy), accuracy, us, count) for accuracy, us, count in (*singles, *shown)]
    return Scatter(
        width=_SCATTER_WIDTH,
        height=_SCATTER_HEIGHT,
        left=_LEFT,
        bottom=_SCATTER_HEIGHT - _BOTTOM,
        x_ticks=tuple(Tick(x(value), value) for value in x_values),
        y_ticks=tuple(Tick(y(value), value) for value in y_values),
        front=tuple(marks[3:]),
        path=_staircase(marks[3:]),
        predicted=marks[0],
        measured=marks[1],
        plain=marks[2],
        hidden=len(front) - len(shown),
    )


def _staircase(marks: list[Mark]) -> str:
    """SVG path: between two designs of a front, the slower budget still buys the faster design only."""
    steps = [f"H{mark.x}V{mark.y}" for mark in marks[1:]]
    return f"M{marks[0].x},{marks[0].y}" + "".join(steps) if marks else ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. expected: x of the predicted value."""

    name: str
    y: float
    width: float
    expected: float
    rate: float
    predicted_rate: float


@dataclass(frozen=True, slots=True)
class Bars:
    width: int
    height: int
    left: int
    bars: tuple[Bar, ...]


def exit_bars(report: Report) -> Bars:
    """Share of the samples that leave at each exit, the backbone's end last."""
    width, left = 760, 200
    names = [placed["name"] for placed in report["design"]["exits"]] + ["end of the backbone"]
    rates, expected = report["hapi"]["exit_rates"], report["predicted"]["exit_rates"]
    scale = Scale(0.0, max(*rates, *expected, 0.01), 0, width - left - 150)
    bars = tuple(
        Bar(name, index * _ROW, scale(rate), left + scale(hoped), rate, hoped)
        for index, (name, rate, hoped) in enumerate(zip(names, rates, expected, strict=True))
    )
    return Bars(width, _ROW * len(bars), left, bars)


@dataclass(frozen=True, slots=True)
class Slice:
    """kind: "segment" or "branch". index: of the segment or exit. spent_us: cost times reach."""

    name: str
    kind: str
    index: int
    x: float
    width: float
    spent_us: float
    reach: float


@dataclass(frozen=True, slots=True)
class StackRow:
    """measured: x of the mean latency timed end to end; the slices are a sum over kernels."""

    title: str
    y: float
    slices: tuple[Slice, ...]
    total_us: float
    measured: float
    measured_us: float


@dataclass(frozen=True, slots=True)
class Stack:
    width: int
    height: int
    left: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    rows: tuple[StackRow, ...]


def time_stack(report: Report) -> Stack:
    """Where an average sample's time goes: the plain backbone above, the design below, on one scale."""
    segments, exits = report["segments"], report["exits_breakdown"]
    plain = [(s["name"], "segment", i, s["median_us"], 1.0) for i, s in enumerate(segments)]
    design = []
    for index, segment in enumerate(segments):
        design.append((segment["name"], "segment", index, segment["median_us"], segment["reach"]))
        if index < len(exits):
            branch = exits[index]
            design.append(
                (f"{branch['name']} (branch)", "branch", index, branch["branch_us"], branch["reach"])
            )
    parts = (
        ("plain backbone", plain, report["backbone"]["latency_us"]["mean"]),
        ("with exits", design, report["hapi"]["latency_us"]["mean"]),
    )
    longest_us = max(max(_spent_us(costs), measured_us) for _, costs, measured_us in parts)
    values = round_ticks(0.0, max(longest_us, 1e-3), 6)
    width, left, row_height = 760, 110, 62
    x = Scale(0.0, values[-1], left, width - _RIGHT)
    rows = tuple(
        StackRow(
            title, 16 + index * row_height, _slices(costs, x), _spent_us(costs), x(measured_us), measured_us
        )
        for index, (title, costs, measured_us) in enumerate(parts)
    )
    bottom = 16 + row_height * len(rows) - 14
    return Stack(width, bottom + 40, left, bottom, tuple(Tick(x(value), value) for value in values), rows)


def _spent_us(costs: list[tuple[str, str, int, float, float]]) -> float:
    return sum(us * reach for _, _, _, us, reach in costs)


def _slices(costs: list[tuple[str, str, int, float, float]], x: Scale) -> tuple[Slice, ...]:
    slices, before_us = [], 0.0
    for name, kind, index, us, reach in costs:
        spent_us = us * reach
        start = x(before_us)
        slices.append(
            Slice(name, kind, index, start, round(x(before_us + spent_us) - start, 2), spent_us, reach)
        )
        before_us += spent_us
    return tuple(slices)
