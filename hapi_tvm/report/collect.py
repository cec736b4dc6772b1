"""From the records of a run to ``report.json``."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hapi_tvm import recordio
from hapi_tvm.certify import gap_between
from hapi_tvm.certify.counts import Counts
from hapi_tvm.records import (
    CalibrationTable,
    Certificate,
    Design,
    ExitGraph,
    KernelLatency,
    LatencyTable,
    Option,
    median_error,
)
from hapi_tvm.report.schema import ExitCost, KernelCost, Report, SegmentCost
from hapi_tvm.targets.machine_facts import MachineFacts
from hapi_tvm.verifying import Agreement, TestRun


@dataclass(frozen=True, slots=True)
class RunRecords:
    """What a finished run has to tell. calibration: the samples that were searched on. certificate: None where
    none was asked for. front: designs for the Pareto plot. machine: that the figures come from. started: ISO time
    with zone."""

    model: str
    dataset: str
    splits: Mapping[str, int]
    graph: ExitGraph
    latency: LatencyTable
    calibration: CalibrationTable
    design: Design
    certificate: Certificate | None
    front: Sequence[Design]
    test: CalibrationTable
    run: TestRun
    agreement: Agreement
    machine: MachineFacts
    timings_s: Mapping[str, float]
    started: str


def collect(records: RunRecords) -> Report:
    """The report, in the shape that ``schema`` describes."""
    design, run, latency = records.design, records.run, records.latency
    predicted = design.predicted
    rates = np.bincount(run.exit, minlength=len(design.exits) + 1) / len(run.exit)
    right = run.label == records.test.label
    return {
        "model": records.model,
        "target": latency.target,
        "dataset": records.dataset,
        "splits": dict(records.splits),
        "candidates": len(records.graph.candidates),
        "design": {
            "exits": [
                {
                    "name": placed.name,
                    "flops_share": placed.flops_share,
                    "branch": placed.kind,
                    "threshold": placed.threshold,
                }
                for placed in design.exits
            ]
        },
        "backbone": {
            "test_accuracy": float((run.plain_label == records.test.label).mean()),
            "latency_us": _latency(run.plain_us, ("mean", "p50", "p95")),
        },
        "hapi": {
            "test_accuracy": float(right.mean()),
            "latency_us": _latency(run.latency_us, ("mean", "p50", "p95", "p99", "worst")),
            "exit_rates": rates.tolist(),
        },
        "predicted": {
            "accuracy": predicted.accuracy,
            "accuracy_drop": predicted.accuracy_drop,
            "accuracy_drop_upper": predicted.accuracy_drop_upper,
            "mean_latency_us": predicted.mean_us,
            "p50_latency_us": predicted.p50_us,
            "p95_latency_us": predicted.p95_us,
            "p99_latency_us": predicted.p99_us,
            "worst_latency_us": predicted.worst_us,
            "deadline_us": predicted.deadline_us,
            "exit_rates": list(predicted.exit_rates),
        },
        "certificate": None if records.certificate is None else recordio.to_json(records.certificate),
        "generalisation": asdict(
            gap_between(Counts.of_design(records.calibration, design), Counts.of_design(records.test, design))
        ),
        "pareto": [
            {
                "accuracy": point.predicted.accuracy,
                "mean_latency_us": point.predicted.mean_us,
                "exits": len(point.exits),
            }
            for point in records.front
        ],
        "segments": _segments(records, rates),
        "exits_breakdown": _exits(records, rates, right),
        "kernels": _kernels(records),
        "machine": {
            "cpu": records.machine.cpu,
            "cores": records.machine.cores,
            "os": records.machine.system,
            "python": platform.python_version(),
        },
        "threads": latency.threads,
        "tvm_version": latency.tvm_version,
        "sla": asdict(design.sla),
        "search": {"space": design.space, "proven_optimal": design.proven_optimal},
        "verification": {
            "samples": len(run.exit),
            "same_exit": records.agreement.same_exit,
            "same_label": records.agreement.same_label,
            "margins_under_1e-5": [
                {"sample": sample, "exit": design.exits[index].name, "margin": margin}
                for sample, index, margin in records.agreement.tight
            ],
        },
        "timings_s": dict(records.timings_s),
        "run_started": records.started,
    }


def _latency(samples_us: np.ndarray, metrics: Sequence[str]) -> dict:
    values = {
        "mean": samples_us.mean(),
        "p50": np.quantile(samples_us, 0.50),
        "p95": np.quantile(samples_us, 0.95),
        "p99": np.quantile(samples_us, 0.99),
        "worst": samples_us.max(),
    }
    return {metric: float(values[metric]) for metric in metrics}


def _reach(rates: np.ndarray) -> np.ndarray:
    """Share of samples that enter each segment; ``rates`` [E + 1] leave at each exit."""
    return 1.0 - np.concatenate([[0.0], np.cumsum(rates)[:-1]])


def _segments(records: RunRecords, rates: np.ndarray) -> list[SegmentCost]:
    """The merged segments of the design."""
    design, latency = records.design, records.latency
    ends = [placed.candidate for placed in design.exits] + [len(records.graph.candidates)]
    shares = [*(candidate.flops_share for candidate in records.graph.candidates), 1.0]
    rows: list[SegmentCost] = []
    begin, share_before = 0, 0.0
    for index, (end, reach) in enumerate(zip(ends, _reach(rates), strict=True)):
        sigma_us, measured = _spread(latency, latency.segments, latency.segment_samples_us, range(begin, end + 1))
        rows.append(
            {
                "name": f"segment_{index:02d}",
                "median_us": float(latency.segment_us[begin : end + 1].sum()),
                "sigma_us": sigma_us,
                "measured": measured,
                "flops_share": max(0.0, shares[end] - share_before),
                "reach": float(reach),
            }
        )
        begin, share_before = end + 1, shares[end]
    return rows


def _exits(records: RunRecords, rates: np.ndarray, right: np.ndarray) -> list[ExitCost]:
    latency = records.latency
    rows: list[ExitCost] = []
    for index, (placed, reach) in enumerate(zip(records.design.exits, _reach(rates), strict=False)):
        row = latency.options.index(Option(placed.candidate, placed.kind))
        sigma_us, measured = _spread(latency, latency.branches, latency.branch_samples_us, [row])
        left = records.run.exit == index
        rows.append(
            {
                "name": placed.name,
                "branch_us": float(latency.branch_us[row]),
                "sigma_us": sigma_us,
                "measured": measured,
                "reach": float(reach),
                "rate": float(rates[index]),
                "accuracy": float(right[left].mean()) if left.any() else None,
            }
        )
    return rows


def _kernels(records: RunRecords) -> list[KernelCost]:
    calls = design_kernels(records.design, records.latency)
    by_key = {kernel.key: kernel for kernel in records.latency.kernels}
    return [
        {
            "name": by_key[key].name,
            "key": key,
            "median_us": by_key[key].median_us,
            "sigma_us": by_key[key].sigma_us,
            "measured": by_key[key].measured,
            "count": calls.count(key),
        }
        for key in dict.fromkeys(calls)
    ]


def design_kernels(design: Design, latency: LatencyTable) -> list[str]:
    """Keys of every kernel call on the longest path through the design."""
    calls = [key for chain in latency.segments for key in chain]
    for placed in design.exits:
        calls += latency.branches[latency.options.index(Option(placed.candidate, placed.kind))]
    return calls


def _spread(
    latency: LatencyTable,
    chains: Sequence[Sequence[str]],
    samples_us: Sequence[Sequence[float]],
    rows: Sequence[int],
) -> tuple[float, bool]:
    """Standard error of the summed cost of ``rows``, and whether nothing in it was predicted.

    From the samples of the rows where they were measured in place; else from their kernels, of which
    equal ones err together.
    """
    if samples_us:
        return math.sqrt(sum(median_error(samples_us[row]) ** 2 for row in rows)), True
    keys = [key for row in rows for key in chains[row]]
    by_key: dict[str, KernelLatency] = {kernel.key: kernel for kernel in latency.kernels}
    variance = sum((keys.count(key) * by_key[key].sigma_us) ** 2 for key in set(keys))
    return latency.scale * math.sqrt(variance), all(by_key[key].measured for key in keys)
