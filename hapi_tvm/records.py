"""The records that stages hand to each other. Frozen; change means ``dataclasses.replace``.

Backbone -> ExitGraph -+-> heads trained -> CalibrationTable -----------+
                       +-> segments -> tuned kernels -> LatencyTable ---+-> search -> Design

A candidate exit is a place in the network; an *option* is a candidate with a branch kind. The
columns of ``CalibrationTable`` and the branches of ``LatencyTable`` follow the same list of options,
ordered by candidate, then kind.
"""

from __future__ import annotations

import math
import numbers
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from hapi_tvm.errors import RecordError, SLAError

__all__ = [
    "CalibrationTable",
    "Candidate",
    "Certificate",
    "Design",
    "DesignTest",
    "ExitGraph",
    "KernelLatency",
    "Ladder",
    "LatencyTable",
    "Option",
    "PlacedExit",
    "Prediction",
    "SLA",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor of the backbone through which everything later must pass.

    shape: [1, C, H, W]. flops_before: operations (2 per multiply-add) up to and including it.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    flops_before: int
    flops_share: float

    def __post_init__(self):
        if not 0.0 <= self.flops_share <= 1.0:
            raise RecordError(f"candidate {self.name}: flops_share={self.flops_share} is outside [0, 1]")


@dataclass(frozen=True, slots=True, order=True)
class Option:
    """A branch of one kind at one candidate (an index into ``ExitGraph.candidates``)."""

    candidate: int
    kind: str


@dataclass(frozen=True, slots=True)
class ExitGraph:
    """Candidate exits in network order, and the branch kinds that each may carry."""

    model_hash: str
    classes: int
    backbone_flops: int
    candidates: tuple[Candidate, ...]
    kinds: tuple[str, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(Option(i, kind) for i in range(len(self.candidates)) for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """What every branch and the backbone answered on a split that trained nothing.

    options: the C columns, ordered; column C is the backbone.
    confidence: float32 [N, C + 1] in [0, 1], no NaN. prediction: int32 [N, C + 1]. label: int32 [N].
    """

    split: str
    options: tuple[Option, ...]
    confidence: np.ndarray
    prediction: np.ndarray
    label: np.ndarray

    def __post_init__(self):
        shape = (len(self.label), len(self.options) + 1)
        for name in ("confidence", "prediction"):
            if getattr(self, name).shape != shape:
                raise RecordError(
                    f"CalibrationTable.{name} has shape {getattr(self, name).shape}; "
                    f"{shape[0]} labels and {len(self.options)} options need {shape}"
                )
        if shape[0] == 0:
            raise RecordError(f"CalibrationTable: the split {self.split!r} is empty")
        if self.label.ndim != 1:
            raise RecordError(f"CalibrationTable.label has shape {self.label.shape}; one class a sample is [N]")
        for name in ("prediction", "label"):
            if (dtype := getattr(self, name).dtype).kind not in "iu":
                raise RecordError(f"CalibrationTable.{name} is {dtype}; classes are counted from 0, so make it int32")
        bad = ~((self.confidence >= 0) & (self.confidence <= 1))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise RecordError(
                f"CalibrationTable.confidence[{row}, {column}] = {self.confidence[row, column]}; "
                "every confidence must lie in [0, 1]"
            )
        if list(self.options) != sorted(self.options, key=lambda option: option.candidate):
            raise RecordError("CalibrationTable.options must be ordered by candidate")

    @property
    def right(self) -> np.ndarray:
        """bool [N, C + 1]: the answers that match the label."""
        return self.prediction == self.label[:, None]


@dataclass(frozen=True, slots=True)
class KernelLatency:
    """One kernel on one target: raw repeats in microseconds, or a prediction with its sigma.

    key: structural hash of the kernel. samples_us is empty exactly when the kernel was predicted.
    sigma_us: standard error of the median where measured, of the surrogate where predicted.
    """

    key: str
    name: str
    median_us: float
    sigma_us: float
    samples_us: tuple[float, ...] = ()

    def __post_init__(self):
        figures = {"median_us": self.median_us, "sigma_us": self.sigma_us}
        figures |= {f"samples_us[{index}]": sample_us for index, sample_us in enumerate(self.samples_us)}
        for what, value_us in figures.items():
            if not _is_latency(value_us):
                raise RecordError(f"kernel {self.name} ({self.key}): {what}={value_us} is no latency; measure it again")

    @property
    def measured(self) -> bool:
        return bool(self.samples_us)


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """What every segment and every branch costs on one target. All times in microseconds.

    segments: E + 1 rows of kernel keys in call order. branches: one row for each of ``options``.
    segment_samples_us, branch_samples_us: raw repeats of whole segments and branches, run in their places
    in the network; empty where their kernels' sum has to do.
    entry_us: entering the module, paid once an inference, in segment 0. call_us: what the virtual machine
    adds to each kernel. gate_us: what one exit adds beyond its branch (comparison, verdict, the branch
    taken). scale: the whole backbone's time over its summed kernels and calls; it carries what kernels do
    to each other's caches, and 1 is unchecked. schedules: hash of the schedules that ran.
    """

    target: str
    threads: int
    tvm_version: str
    kernels: tuple[KernelLatency, ...]
    segments: tuple[tuple[str, ...], ...]
    options: tuple[Option, ...]
    branches: tuple[tuple[str, ...], ...]
    segment_samples_us: tuple[tuple[float, ...], ...] = ()
    branch_samples_us: tuple[tuple[float, ...], ...] = ()
    entry_us: float = 0.0
    call_us: float = 0.0
    gate_us: float = 0.0
    scale: float = 1.0
    schedules: str = ""

    def __post_init__(self):
        if len(self.branches) != len(self.options):
            raise RecordError(f"LatencyTable: {len(self.branches)} branches for {len(self.options)} options")
        if not self.segments:
            raise RecordError("LatencyTable: no segment; a network has one at least")
        for what, samples, rows in (
            ("segment", self.segment_samples_us, self.segments),
            ("branch", self.branch_samples_us, self.branches),
        ):
            if samples and (len(samples) != len(rows) or not all(samples)):
                raise RecordError(f"LatencyTable: samples of {len(samples)} {what} rows, of {len(rows)}, or empty ones")
            for index, row in enumerate(samples):
                for repeat, sample_us in enumerate(row):
                    if not _is_latency(sample_us):
                        raise RecordError(
                            f"LatencyTable.{what}_samples_us[{index}][{repeat}] = {sample_us} is no latency; "
                            "measure it again"
                        )
        for name in ("entry_us", "call_us", "gate_us", "scale"):
            if not _is_latency(getattr(self, name)):
                raise RecordError(f"LatencyTable.{name} = {getattr(self, name)} must be finite and not negative")
        known = {kernel.key: kernel for kernel in self.kernels}
        for index, kernel in enumerate(self.kernels):
            if known[kernel.key] is not kernel:
                raise RecordError(f"LatencyTable.kernels[{index}] is {kernel.key}, which another one is too")
        for what, rows in (("segment", self.segments), ("branch", self.branches)):
            for index, row in enumerate(rows):
                for key in row:
                    if key not in known:
                        raise RecordError(f"LatencyTable: {what} {index} calls kernel {key}, which has no latency")

    def _sum_us(self, rows: tuple[tuple[str, ...], ...]) -> np.ndarray:
        median = {kernel.key: kernel.median_us for kernel in self.kernels}
        return np.array([self.scale * sum(median[key] + self.call_us for key in row) for row in rows])

    def _sum_sigma_us(self, rows: tuple[tuple[str, ...], ...]) -> np.ndarray:
        sigma = {kernel.key: kernel.sigma_us for kernel in self.kernels}
        return np.array([self.scale * sum(sigma[key] for key in row) for row in rows])

    @property
    def segment_us(self) -> np.ndarray:
        """float64 [E + 1], microseconds; entering the module is part of segment 0."""
        cost_us = _medians(self.segment_samples_us) if self.segment_samples_us else self._sum_us(self.segments)
        cost_us[0] += self.entry_us
        return cost_us

    @property
    def branch_us(self) -> np.ndarray:
        """float64 [C], microseconds, the gate included; ordered as ``options``."""
        cost_us = _medians(self.branch_samples_us) if self.branch_samples_us else self._sum_us(self.branches)
        return cost_us + self.gate_us

    @property
    def segment_sigma_us(self) -> np.ndarray:
        """float64 [E + 1], microseconds: standard error of each row of ``segment_us``. The errors of a row's
        kernels add up as they are, for a surrogate errs on all of them the same way."""
        return _errors(self.segment_samples_us) if self.segment_samples_us else self._sum_sigma_us(self.segments)

    @property
    def branch_sigma_us(self) -> np.ndarray:
        """float64 [C], microseconds; as ``segment_sigma_us``."""
        return _errors(self.branch_samples_us) if self.branch_samples_us else self._sum_sigma_us(self.branches)


def _is_latency(value_us: float) -> bool:
    return math.isfinite(value_us) and value_us >= 0


def median_error(samples: Sequence[float]) -> float:
    """Standard error of the median.

    It is 1.2533 times that of a mean for normal samples; the spread is taken from the median absolute
    deviation (times 1.4826), which a few disturbed repeats do not move.
    """
    deviation = statistics.median(abs(sample - statistics.median(samples)) for sample in samples)
    return 1.2533 * 1.4826 * deviation / math.sqrt(len(samples))


def _medians(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.array([np.median(row) for row in rows])


def _errors(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.array([median_error(row) for row in rows])


DROP_LIMIT = "max_accuracy_drop"
"""The field of ``SLA`` that limits the accuracy drop."""

LATENCY_LIMITS = {
    "mean": "mean_latency_ms",
    "p95": "p95_latency_ms",
    "p99": "p99_latency_ms",
    "worst": "worst_latency_ms",
    "deadline": "deadline_ms",
}
"""The field of ``SLA`` that limits each latency of ``Prediction``."""


@dataclass(frozen=True, slots=True)
class SLA:
    """What the deployment demands. Give an accuracy drop, a latency, or both.

    max_accuracy_drop: share of samples, 0.01 is one point. Alone, it asks for the least latency.
    <metric>_latency_ms: budget in milliseconds. Alone, or several, they ask for the most accuracy.
    With both kinds, the least mean latency among the designs that meet every line.
    deadline_ms: no sample may be answered later. Where the network does not end in time, the last exit
    that is reached by then answers whatever it is asked (its threshold is 0), and nothing behind it runs.
    latency_quantile: segments and branches are planned at this upper limit of their typical cost: the median plus
    its standard error (the surrogate's, where it was predicted) times the normal quantile. Every row is taken high at
    once, as if all errors were one, so that nothing cancels: a sum at this level is at or above the sum's own
    quantile whatever the correlation. Overheads and scale are taken as they are. It is about what is not known of the
    costs, not about how they vary from one run to the next. 0.5 takes the medians.
    drop_confidence: the accuracy drop is held at its one-sided upper limit of this level (normal
    approximation of the paired difference, one fixed design); 0.5 takes the plain estimate.
    certify_delta: ask for a certificate (``hapi_tvm.certify``) that the drop is at most ``max_accuracy_drop``,
    with this risk of being wrong; None asks for none.
    max_exits: how many exits a design may place.
    """

    max_accuracy_drop: float | None = None
    mean_latency_ms: float | None = None
    p95_latency_ms: float | None = None
    p99_latency_ms: float | None = None
    worst_latency_ms: float | None = None
    deadline_ms: float | None = None
    latency_quantile: float = 0.5
    drop_confidence: float = 0.95
    certify_delta: float | None = None
    max_exits: int = 4

    def __post_init__(self):
        for name in (line.name for line in fields(self)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise SLAError(f"SLA: {name}={value!r} is no number")
        if self.max_accuracy_drop is None and not self.budgets_us:
            raise SLAError("SLA: nothing asked for; give max_accuracy_drop or a latency such as mean_latency_ms")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 1:
            raise SLAError(
                f"SLA: max_accuracy_drop={self.max_accuracy_drop} must lie in [0, 1]; one point is 0.01"
            )
        for metric, budget_us in self.budgets_us.items():
            if not (math.isfinite(budget_us) and budget_us > 0):
                raise SLAError(f"SLA: {LATENCY_LIMITS[metric]}={budget_us / 1000} must be a positive number")
        if not 0.5 <= self.latency_quantile < 1:
            raise SLAError(f"SLA: latency_quantile={self.latency_quantile} must lie in [0.5, 1)")
        if not 0.5 <= self.drop_confidence < 1:
            raise SLAError(f"SLA: drop_confidence={self.drop_confidence} must lie in [0.5, 1)")
        self._check_certificate()
        if self.max_exits < 0 or not isinstance(self.max_exits, numbers.Integral):
            raise SLAError(f"SLA: max_exits={self.max_exits} must be a whole number, not negative")

    def _check_certificate(self) -> None:
        if self.certify_delta is None:
            return
        if not 0 < self.certify_delta < 1:
            raise SLAError(f"SLA: certify_delta={self.certify_delta} must lie in (0, 1); 0.1 is a confidence of 90 %")
        if self.max_accuracy_drop is None or not 0 < self.max_accuracy_drop < 1:
            raise SLAError(
                f"SLA: certify_delta={self.certify_delta} with max_accuracy_drop={self.max_accuracy_drop}; what is "
                "certified is the drop, so give one in (0, 1): 0.01 is one point"
            )

    @property
    def budgets_us(self) -> Mapping[str, float]:
        """Microseconds by metric, the metrics asked for only."""
        given = {metric: getattr(self, field) for metric, field in LATENCY_LIMITS.items()}
        return {metric: 1000.0 * ms for metric, ms in given.items() if ms is not None}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the search expects of a design, from the two tables. Latencies in microseconds.

    accuracy_drop: backbone minus design on the calibration split; upper: its limit at the SLA's level.
    worst_us: all segments and all placed branches. deadline_us: the latest that any sample, seen or not, is
    answered: as worst_us, unless an exit of threshold 0 lets nobody pass.
    exit_rates: share of samples that leave at each placed exit, the backbone's last; sums to 1.
    """

    accuracy: float
    accuracy_drop: float
    accuracy_drop_upper: float
    mean_us: float
    p50_us: float
    p95_us: float
    p99_us: float
    worst_us: float
    deadline_us: float
    exit_rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PlacedExit:
    """An exit of a design; it fires where ``confidence >= threshold``."""

    name: str
    candidate: int
    kind: str
    threshold: float
    flops_share: float

    def __post_init__(self):
        if not 0.0 <= self.threshold <= 1.0:
            raise RecordError(f"exit {self.name}: threshold={self.threshold} is outside [0, 1]")


@dataclass(frozen=True, slots=True)
class DesignTest:
    """What the certification split said of one design.

    exits: how many it places. mean_us: what the search expected. lost, gained: samples that the backbone alone,
    and the design alone, answers right. needs_more: about how many more samples would let it pass if it goes on
    losing at this rate; None where it passed, and where no number would.
    """

    exits: int
    mean_us: float
    lost: int
    gained: int
    p_value: float
    passed: bool
    needs_more: int | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A distribution-free statement about the accuracy drop of one design, or why there is none.

    epsilon: the drop, as a share of the samples. delta: the risk that it is larger although it was certified.
    n: samples of the certification split. verdict: in words. tests: in their order, the safest design first; the
    certificate speaks of the last that passed, and of the first where none did.
    """

    epsilon: float
    delta: float
    method: str
    n: int
    verdict: str
    certified: bool
    tests: tuple[DesignTest, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """Exits in network order, with thresholds, and what they are expected to do.

    provenance: hashes of the records it was searched from, by name.
    proven_optimal: True where the search proved that no better design exists in the space it states.
    """

    exits: tuple[PlacedExit, ...]
    sla: SLA
    predicted: Prediction
    space: str = ""
    proven_optimal: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Designs for one SLA, the safest first: the order in which they are tested. The last is the search's choice."""

    designs: tuple[Design, ...]
