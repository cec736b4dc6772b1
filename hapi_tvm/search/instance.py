"""The two tables of one search, checked against each other, in whole numbers.

Latencies are rounded to picoseconds once, here. From then on every sum and every comparison is exact
integer arithmetic, so two designs tie only if they really do, and the order of a sum changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hapi_tvm.errors import RecordError
from hapi_tvm.records import CalibrationTable, ExitGraph, LatencyTable, Option

__all__ = ["Exits", "Instance", "check_graph"]

PS_PER_US = 1_000_000

Exits = Sequence[tuple[int, float]]
"""(option index, threshold) of each placed exit, in network order."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What the search reads: C options at E candidates, N samples.

    candidate: int64 [C], non-decreasing. confidence: float32 [N, C] in [0, 1], no NaN.
    right: bool [N, C + 1], the backbone last. branch_ps: int64 [C], the gate included.
    reach_ps: int64 [E + 1], the segments up to and including each candidate; the last is the backbone.
    """

    options: tuple[Option, ...]
    candidate: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    reach_ps: np.ndarray
    branch_ps: np.ndarray

    @classmethod
    def from_tables(
        cls, calibration: CalibrationTable, latency: LatencyTable, *, latency_quantile: float = 0.5
    ) -> Instance:
        """latency_quantile: see ``SLA``. Raises RecordError if the tables contradict each other or hold what
        cannot be searched."""
        _check_options(calibration, latency)
        if calibration.confidence.dtype != np.float32:
            raise RecordError(
                f"CalibrationTable.confidence is {calibration.confidence.dtype}; the compiled module "
                "compares float32, so calibrate in float32"
            )
        segment_us, branch_us = latency.segment_us, latency.branch_us
        if latency_quantile != 0.5:
            z = NormalDist().inv_cdf(latency_quantile)
            segment_us = segment_us + z * latency.segment_sigma_us
            branch_us = branch_us + z * latency.branch_sigma_us
        segment_ps = _picoseconds("segment_us", segment_us)
        branch_ps = _picoseconds("branch_us", branch_us)
        worst_ps = sum(segment_ps.tolist()) + sum(branch_ps.tolist())
        if worst_ps * len(calibration.label) >= 2**62:
            raise RecordError(
                f"LatencyTable: {worst_ps / PS_PER_US:.3g} us for {len(calibration.label)} samples is beyond "
                "what 64-bit picoseconds hold; check the unit of the latencies"
            )
        return cls(
            options=calibration.options,
            candidate=np.array([option.candidate for option in calibration.options], dtype=np.int64),
            confidence=np.ascontiguousarray(calibration.confidence[:, :-1]),
            right=calibration.right,
            reach_ps=np.cumsum(segment_ps),
            branch_ps=branch_ps,
        )

    @property
    def samples(self) -> int:
        return len(self.right)

    @property
    def end_ps(self) -> int:
        """All segments, no branch."""
        return int(self.reach_ps[-1])

    @property
    def option_reach_ps(self) -> np.ndarray:
        """int64 [C]: the segments up to and including each option's candidate."""
        return self.reach_ps[self.candidate]

    @property
    def after(self) -> np.ndarray:
        """int64 [C]: the first option at a later candidate than each option's own; C where there is none."""
        return np.searchsorted(self.candidate, self.candidate, side="right")


def check_graph(graph: ExitGraph, calibration: CalibrationTable, latency: LatencyTable) -> None:
    """Raises RecordError unless the graph has the options and the candidates of the two tables."""
    if len(graph.candidates) != len(latency.segments) - 1:
        raise RecordError(
            f"ExitGraph has {len(graph.candidates)} candidates and LatencyTable {len(latency.segments)} "
            "segments; E candidates cut a network into E + 1 segments: measure this graph again"
        )
    if graph.options != calibration.options:
        raise RecordError(
            "ExitGraph.options and CalibrationTable.options differ "
            f"{_first_difference(graph.options, calibration.options)}: calibrate this graph again"
        )


def _check_options(calibration: CalibrationTable, latency: LatencyTable) -> None:
    if calibration.options != latency.options:
        raise RecordError(
            "CalibrationTable.options and LatencyTable.options differ "
            f"{_first_difference(calibration.options, latency.options)}: both must come from one ExitGraph"
        )
    if len(set(calibration.options)) != len(calibration.options):
        raise RecordError("CalibrationTable.options and LatencyTable.options name the same option twice")
    candidates = len(latency.segments) - 1
    for index, option in enumerate(calibration.options):
        if not 0 <= option.candidate < candidates:
            raise RecordError(
                f"CalibrationTable.options[{index}] is at candidate {option.candidate}; LatencyTable has "
                f"{len(latency.segments)} segments, so candidates 0 to {candidates - 1}"
            )


def _first_difference(ours: tuple[Option, ...], theirs: tuple[Option, ...]) -> str:
    for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            return f"at index {index} ({left} against {right})"
    return f"in length ({len(ours)} against {len(theirs)})"


def _picoseconds(name: str, latency_us: np.ndarray) -> np.ndarray:
    latency_us = np.asarray(latency_us, dtype=np.float64)
    bad = ~(np.isfinite(latency_us) & (latency_us >= 0) & (latency_us < 2**62 / PS_PER_US))
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise RecordError(
            f"LatencyTable.{name}[{index}] = {latency_us[index]} is no latency; measure it again"
        )
    return np.rint(latency_us * PS_PER_US).astype(np.int64)
