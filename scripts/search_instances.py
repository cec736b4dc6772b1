"""What ``bench_search.py`` searches: tables, an SLA and a space, described so that a worker can make them again."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from hapi_tvm.recordio import read_record
from hapi_tvm.records import SLA, CalibrationTable, LatencyTable
from hapi_tvm.search.evaluator import evaluate
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.space import Space
from hapi_tvm.search.synthetic import network

__all__ = ["Case", "MadeUp", "OfRun", "default_cases", "quick_cases", "run_cases"]

LIKENESS = 0.6
ASKED = ("drop", "mean", "p95", "deadline")


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Random tables: ``hapi_tvm.search.synthetic.network``."""

    seed: int
    samples: int
    candidates: int
    kinds: int

    def tables(self) -> tuple[CalibrationTable, LatencyTable]:
        calibration, latency, _ = network(
            self.seed, samples=self.samples, candidates=self.candidates, kinds=self.kinds, likeness=LIKENESS
        )
        return calibration, latency


@dataclass(frozen=True, slots=True)
class OfRun:
    """The tables that a build left in its run folder."""

    folder: str

    def tables(self) -> tuple[CalibrationTable, LatencyTable]:
        folder = pathlib.Path(self.folder)
        return read_record(folder / "calibrate.npz", CalibrationTable), read_record(
            folder / "latency.json", LatencyTable
        )


@dataclass(frozen=True, slots=True)
class Case:
    """asked: of ASKED. max_exits: None allows one at every candidate."""

    name: str
    source: MadeUp | OfRun
    asked: str
    shared: bool
    grid: int
    max_exits: int | None

    def problem(self) -> tuple[Problem, SLA]:
        calibration, latency = self.source.tables()
        exits = len(latency.segments) - 1 if self.max_exits is None else self.max_exits
        sla = _sla(self.asked, evaluate(calibration, latency, []).mean_us / 1000, exits)
        return Problem.of(calibration, latency, sla, Space(shared=self.shared, grid=self.grid)), sla


def _sla(asked: str, backbone_ms: float, max_exits: int) -> SLA:
    """A point of accuracy at 95 % confidence for the least latency; or the most accuracy for a latency that the
    backbone does not keep. A p95 or a deadline below it must be kept with the late exits cut off."""
    if asked == "drop":
        return SLA(max_accuracy_drop=0.01, max_exits=max_exits)
    if asked == "mean":
        return SLA(mean_latency_ms=0.5 * backbone_ms, max_exits=max_exits)
    if asked == "p95":
        return SLA(p95_latency_ms=0.8 * backbone_ms, max_exits=max_exits)
    return SLA(deadline_ms=0.7 * backbone_ms, max_exits=max_exits)


def default_cases() -> tuple[Case, ...]:
    """23: one threshold for all exits; at most four exits, three networks; any number of exits; a deep network."""
    shared = [Case(f"shared-{asked}", MadeUp(1, 5000, 12, 1), asked, True, 100, None) for asked in ASKED]
    four = [
        Case(f"four-{asked}-{seed}", MadeUp(seed, 5000, 12, 1), asked, False, 32, 4)
        for seed in (1, 2, 3)
        for asked in ASKED
    ]
    full = [Case(f"any-{asked}", MadeUp(1, 5000, 12, 1), asked, False, 32, None) for asked in ASKED]
    deep = [
        Case("deep-four-drop", MadeUp(1, 50_000, 54, 2), "drop", False, 32, 4),
        Case("deep-four-mean", MadeUp(1, 50_000, 54, 2), "mean", False, 32, 4),
        Case("deep-any-drop", MadeUp(1, 50_000, 54, 2), "drop", False, 32, None),
    ]
    return (*shared, *four, *full, *deep)


def run_cases(folder: str) -> tuple[Case, ...]:
    """Of a run folder: three SLAs with at most four exits, and one with any number."""
    name = pathlib.Path(folder).resolve().name
    four = [Case(f"{name}-four-{asked}", OfRun(folder), asked, False, 32, 4) for asked in ("drop", "mean", "p95")]
    return (*four, Case(f"{name}-any-drop", OfRun(folder), "drop", False, 32, None))


def quick_cases() -> tuple[Case, ...]:
    """Small ones, to try the benchmark itself."""
    return (
        Case("quick-shared-drop", MadeUp(1, 300, 4, 1), "drop", True, 8, None),
        Case("quick-two-mean", MadeUp(2, 300, 4, 2), "mean", False, 4, 2),
        Case("quick-any-p95", MadeUp(3, 300, 4, 1), "p95", False, 4, None),
    )
