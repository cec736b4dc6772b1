"""What a design does on the calibration split: plain NumPy, sample by sample. The oracle of the search."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from hapi_tvm.errors import RecordError
from hapi_tvm.records import SLA, CalibrationTable, LatencyTable, Prediction
from hapi_tvm.search.instance import PS_PER_US, Exits, Instance
from hapi_tvm.search.objective import Figures, drop_upper, rank_count

__all__ = ["check_exits", "evaluate", "figures_of", "leave_costs_ps", "leave_places", "predict", "right_answers"]


def evaluate(
    calibration: CalibrationTable,
    latency: LatencyTable,
    exits: Exits,
    *,
    drop_confidence: float = 0.95,
    latency_quantile: float = 0.5,
) -> Prediction:
    """Accuracy and latency of a design on the calibration split.

    exits: (index into ``calibration.options``, threshold), in network order, at most one a candidate;
    thresholds in [0, 1] that float32 holds exactly. A sample leaves at the first exit where its
    confidence >= threshold, else at the backbone. It pays the segments up to there and every branch
    on the way; the worst case pays all segments and all placed branches, and the deadline is the same up to
    the first exit whose threshold is 0, for nobody passes that. Costs are taken at ``latency_quantile``.

    A percentile q is the smallest leaving cost c such that at least q of the samples cost c or less.
    Raises RecordError if the tables or the exits contradict each other, SLAError for a level outside [0.5, 1).
    """
    SLA(max_accuracy_drop=1.0, drop_confidence=drop_confidence, latency_quantile=latency_quantile)
    instance = Instance.from_tables(calibration, latency, latency_quantile=latency_quantile)
    check_exits(instance, exits)
    return predict(instance, exits, drop_confidence)


def predict(instance: Instance, exits: Exits, drop_confidence: float) -> Prediction:
    """``evaluate`` for tables and exits that were checked before."""
    n = instance.samples
    histogram = _histogram(instance, exits)
    figures = figures_of(instance, exits)
    z = NormalDist().inv_cdf(drop_confidence)
    p50_ps = _percentile_ps(histogram, leave_costs_ps(instance, exits), rank_count(50, n))
    backbone_right = int(np.count_nonzero(instance.right[:, -1]))
    return Prediction(
        accuracy=(backbone_right - figures.lost + figures.gained) / n,
        accuracy_drop=(figures.lost - figures.gained) / n,
        accuracy_drop_upper=float(drop_upper(figures.lost, figures.gained, n, z)),
        mean_us=figures.total_ps / (n * PS_PER_US),
        p50_us=p50_ps / PS_PER_US,
        p95_us=figures.p95_ps / PS_PER_US,
        p99_us=figures.p99_ps / PS_PER_US,
        worst_us=figures.worst_ps / PS_PER_US,
        deadline_us=figures.deadline_ps / PS_PER_US,
        exit_rates=tuple(int(count) / n for count in histogram),
    )


def figures_of(instance: Instance, exits: Exits) -> Figures:
    """The same in whole numbers."""
    n = instance.samples
    histogram = _histogram(instance, exits)
    cost_ps = leave_costs_ps(instance, exits)
    right = right_answers(instance, exits, leave_places(instance, exits))
    backbone_right = instance.right[:, -1]
    return Figures(
        total_ps=int(histogram @ cost_ps),
        lost=int(np.count_nonzero(backbone_right & ~right)),
        gained=int(np.count_nonzero(right & ~backbone_right)),
        p95_ps=_percentile_ps(histogram, cost_ps, rank_count(95, n)),
        p99_ps=_percentile_ps(histogram, cost_ps, rank_count(99, n)),
        worst_ps=int(cost_ps[-1]),
        deadline_ps=int(cost_ps[next((place for place, (_, at) in enumerate(exits) if at <= 0), -1)]),
        exits=len(exits),
    )


def leave_costs_ps(instance: Instance, exits: Exits) -> np.ndarray:
    """int64 [len(exits) + 1]: what a sample pays that leaves at each placed exit, and at the backbone."""
    placed = np.array([option for option, _ in exits], dtype=np.int64)
    branches_ps = np.cumsum(instance.branch_ps[placed])
    here_ps = instance.option_reach_ps[placed] + branches_ps
    return np.append(here_ps, instance.end_ps + branches_ps[-1:].sum())


def leave_places(instance: Instance, exits: Exits) -> np.ndarray:
    """int64 [N]: the place in ``exits`` where each sample leaves; len(exits) is the backbone."""
    leave = np.full(instance.samples, len(exits))
    for place in reversed(range(len(exits))):
        option, threshold = exits[place]
        leave[instance.confidence[:, option] >= np.float32(threshold)] = place
    return leave


def right_answers(instance: Instance, exits: Exits, leave: np.ndarray) -> np.ndarray:
    """bool [N]: whether each sample is answered right at the place where it leaves."""
    column = np.array([option for option, _ in exits] + [len(instance.options)])
    return instance.right[np.arange(instance.samples), column[leave]]


def _histogram(instance: Instance, exits: Exits) -> np.ndarray:
    """int64 [len(exits) + 1]: how many samples leave at each place."""
    return np.bincount(leave_places(instance, exits), minlength=len(exits) + 1)


def _percentile_ps(histogram: np.ndarray, cost_ps: np.ndarray, count: int) -> int:
    """The smallest cost that ``count`` samples do not exceed. Costs never fall along the exits."""
    return int(cost_ps[np.searchsorted(np.cumsum(histogram), count)])


def check_exits(instance: Instance, exits: Exits) -> None:
    """Raises RecordError unless ``exits`` are a design of these tables (see ``evaluate``)."""
    last = -1
    for place, (option, threshold) in enumerate(exits):
        if not 0 <= option < len(instance.options):
            raise RecordError(f"exits[{place}] names option {option}; there are {len(instance.options)}")
        if not 0.0 <= threshold <= 1.0:
            raise RecordError(f"exits[{place}] has threshold {threshold}; it must lie in [0, 1]")
        if float(np.float32(threshold)) != float(threshold):
            raise RecordError(
                f"exits[{place}] has threshold {threshold!r}, which float32 does not hold; the compiled "
                f"module compares float32: use {float(np.float32(threshold))!r}"
            )
        if instance.candidate[option] <= last:
            raise RecordError(
                f"exits[{place}] is at candidate {instance.candidate[option]} behind one at candidate "
                f"{last}; exits must be in network order, at most one a candidate"
            )
        last = int(instance.candidate[option])
