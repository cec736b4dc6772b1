"""The report as one HTML file: no scripts, no fonts, no picture from anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hapi_tvm.report.figures import exit_bars, pareto_scatter, time_stack
from hapi_tvm.report.schema import Report, validate

__all__ = ["format_us", "render_html"]


def format_us(value_us: float) -> str:
    """Three significant digits, in the unit that reads best: "412 µs", "1.84 ms"."""
    if abs(value_us) < 999.5:
        return f"{_significant(value_us)} µs"
    if abs(value_us) < 999_500:
        return f"{_significant(value_us / 1e3)} ms"
    return f"{_significant(value_us / 1e6)} s"


def _significant(value: float) -> str:
    for digits, limit in ((3, 0.9995), (2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _points(share: float) -> str:
    """A difference of shares, signed: "−0.42 points"."""
    return f"{100 * share:+.2f} points".replace("-", "−")


def _seconds(value_s: float) -> str:
    return f"{value_s:.1f} s" if value_s < 60 else f"{value_s // 60:.0f} min {value_s % 60:.0f} s"


def _drop(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "−")


def _plus_minus(share: float) -> str:
    return f"± {100 * share:.2f}"


def _when(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z")


@dataclass(frozen=True, slots=True)
class Demand:
    """One line of the SLA, ready to print."""

    what: str
    asked: str
    predicted: str
    measured: str
    met: bool


def _demands(report: Report) -> list[Demand]:
    sla, hapi, predicted = report["sla"], report["hapi"], report["predicted"]
    demands = []
    if (limit := sla["max_accuracy_drop"]) is not None:
        drop = report["backbone"]["test_accuracy"] - hapi["test_accuracy"]
        demands.append(
            Demand(
                "accuracy drop",
                f"at most {100 * limit:.2f} points",
                f"{_drop(predicted['accuracy_drop'])} (limit {_drop(predicted['accuracy_drop_upper'])})",
                f"{_drop(drop)} points",
                drop <= limit,
            )
        )
    latencies = [(metric, f"{metric} latency", f"{metric}_latency") for metric in ("mean", "p95", "p99", "worst")]
    for metric, what, name in (*latencies, ("worst", "deadline", "deadline")):
        if (budget_ms := sla[f"{name}_ms"]) is not None:
            measured_us = hapi["latency_us"][metric]
            demands.append(
                Demand(
                    what,
                    f"at most {format_us(1e3 * budget_ms)}",
                    format_us(predicted[f"{name}_us"]),
                    format_us(measured_us),
                    measured_us <= 1e3 * budget_ms,
                )
            )
    return demands


@dataclass(frozen=True, slots=True)
class Comparison:
    what: str
    predicted: str
    measured: str
    difference: str


def _comparisons(report: Report) -> list[Comparison]:
    """Predicted against measured: accuracy, latencies, then where samples leave."""
    predicted, hapi = report["predicted"], report["hapi"]
    shares = [("accuracy", predicted["accuracy"], hapi["test_accuracy"])]
    names = [placed["name"] for placed in report["design"]["exits"]] + ["the end"]
    shares += [
        (f"leave at {name}", expected, rate)
        for name, expected, rate in zip(names, predicted["exit_rates"], hapi["exit_rates"], strict=True)
    ]
    rows = [Comparison(what, _percent(a, 2), _percent(b, 2), _points(b - a)) for what, a, b in shares]
    latencies = [
        Comparison(
            f"{metric} latency", format_us(expected_us), format_us(found_us), _relative(found_us, expected_us)
        )
        for metric in ("mean", "p50", "p95", "p99", "worst")
        for expected_us, found_us in [(predicted[f"{metric}_latency_us"], hapi["latency_us"][metric])]
    ]
    return [rows[0], *latencies, *rows[1:]]


def _relative(found: float, expected: float) -> str:
    return f"{100 * (found / expected - 1):+.1f} %".replace("-", "−") if expected else "n/a"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(us=format_us, percent=_percent, points=_points, plus_minus=_plus_minus)
    environment.filters.update(seconds=_seconds, when=_when)
    return environment


def render_html(report: Report) -> str:
    """The page of a report. Raises RecordError where the report is not whole (``schema.validate``)."""
    validate(report)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            scatter=pareto_scatter(report),
            bars=exit_bars(report),
            stack=time_stack(report),
            demands=_demands(report),
            comparisons=_comparisons(report),
            kernels=sorted(report["kernels"], key=lambda kernel: -kernel["median_us"] * kernel["count"]),
        )
    )
