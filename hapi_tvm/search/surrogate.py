"""Latency of kernels that were not measured, from those that were, with an uncertainty.

A bag of models over log latency. Each member is a non-negative roofline (overhead + operations +
bytes, fitted to relative errors), and XGBoost on what the roofline leaves over: three measured
kernels give sane numbers, and thirty give better ones. A member sees a bootstrap sample, so every
measured kernel is also predicted by members that never saw it. Those residuals are the uncertainty;
where members disagree, outside the measured range above all, their spread adds to it. Model and
constants are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import xgboost as xgb
from scipy.optimize import nnls

from hapi_tvm.errors import RecordError

__all__ = ["KernelFeatures", "Surrogate", "choose_to_measure"]

_MEMBERS = 24
_ROUNDS = 60
_FEWEST_FOR_TREES = 6
_TREES = {
    "objective": "reg:squarederror",
    "max_depth": 3,
    "eta": 0.1,
    "min_child_weight": 2.0,
    "lambda": 1.0,
    "tree_method": "exact",
    "nthread": 1,
    "verbosity": 0,
}
# One sample fits any roofline: a ridge holds the shares of (overhead, operations, bytes) near these.
_PRIOR_SHARES = np.array([0.1, 0.45, 0.45])
_PRIOR_WEIGHT = 0.1
_LEAST_SHARE = 0.002
# Log residual assumed before any is seen, worth one kernel's evidence; a factor of 1.65.
_PRIOR_SIGMA = 0.5


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What is known of a fused kernel before it runs.

    operator: family such as "conv2d", "dense", "pool", "reduce", "elementwise" or "softmax".
    flops: operations, 2 per multiply-add; zero for a copy. bytes_read, bytes_written: each buffer once.
    out_channels, out_height, out_width, in_channels: logical (unblocked) sizes, 1 where an axis is
    missing. kernel: window height times width. stride: along the height. groups: convolution groups.
    vector_width: float32 lanes of the target. threads: cores that the kernel may use.
    """

    operator: str
    flops: float
    bytes_read: float
    bytes_written: float
    out_channels: int = 1
    out_height: int = 1
    out_width: int = 1
    in_channels: int = 1
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    vector_width: int = 1
    threads: int = 1

    def __post_init__(self):
        for name in _AMOUNTS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RecordError(f"KernelFeatures.{name}={value} must be a finite number, zero or more")
        if not self.bytes_written:
            raise RecordError(
                f"KernelFeatures.bytes_written=0 for {self.operator!r}: a kernel writes its output"
            )
        for name in _SIZES:
            value = getattr(self, name)
            if value < 1:
                raise RecordError(
                    f"KernelFeatures.{name}={value} must be at least 1; 1 stands for a missing axis"
                )

    @property
    def bytes_moved(self) -> float:
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Operations per byte moved."""
        return self.flops / self.bytes_moved


_AMOUNTS = ("flops", "bytes_read", "bytes_written")
_SIZES = tuple(f.name for f in fields(KernelFeatures) if f.name not in ("operator", *_AMOUNTS))


def _log_features(features: Sequence[KernelFeatures]) -> np.ndarray:
    """float64 [n, F]: base-2 logarithms, and the share of vector lanes that the channels fill."""
    rows = []
    for item in features:
        amounts = (item.flops, item.bytes_read, item.bytes_written, item.intensity)
        vectors = math.ceil(item.out_channels / item.vector_width)
        filled = item.out_channels / (vectors * item.vector_width)
        rows.append([*(1 + amount for amount in amounts), *(getattr(item, name) for name in _SIZES), filled])
    return np.log2(np.array(rows, dtype=np.float64))


def _one_hot(features: Sequence[KernelFeatures], operators: Sequence[str]) -> np.ndarray:
    """float64 [n, len(operators)]; a row of zeros for an operator outside the list."""
    return np.array([[float(item.operator == name) for name in operators] for item in features])


def _work(features: Sequence[KernelFeatures]) -> np.ndarray:
    """float64 [n, 3], all > 0: what the roofline prices: a call, operations, bytes; the last two per thread.

    A byte moved counts as one operation, so that kernels without arithmetic still price operations.
    """
    return np.array(
        [[1.0, (f.flops + f.bytes_moved) / f.threads, f.bytes_moved / f.threads] for f in features]
    )


def _fit_roofline(work: np.ndarray, median_us: np.ndarray) -> np.ndarray:
    """Prices [3], in microseconds per unit of ``work``, all > 0: least squares over relative errors.

    Least squares minimises sum((work @ prices / median_us - 1)^2) plus the ridge of ``_PRIOR_SHARES``.
    A floor under each share keeps the prediction positive and growing with operations and with bytes.
    """
    relative = work / median_us[:, None]
    scale = relative.mean(axis=0)
    ridge = math.sqrt(_PRIOR_WEIGHT)
    left = np.vstack([relative / scale, ridge * np.eye(3)])
    right = np.concatenate([np.ones(len(work)), ridge * _PRIOR_SHARES])
    shares, _ = nnls(left, right)
    return np.maximum(shares, _LEAST_SHARE) / scale


@dataclass(frozen=True, slots=True)
class _Member:
    """One model of the bag. trees is None where too few kernels were measured to grow any."""

    prices: np.ndarray
    offset: float
    trees: xgb.Booster | None

    def log_us(self, work: np.ndarray, columns: np.ndarray) -> np.ndarray:
        base = np.log(work @ self.prices) + self.offset
        if self.trees is None:
            return base
        return base + self.trees.predict(xgb.DMatrix(columns, nthread=1)).astype(np.float64)


def _fit_member(work: np.ndarray, columns: np.ndarray, median_us: np.ndarray, seed: int) -> _Member:
    prices = _fit_roofline(work, median_us)
    left_over = np.log(median_us) - np.log(work @ prices)
    offset = float(np.median(left_over))
    if len(median_us) < _FEWEST_FOR_TREES:
        return _Member(prices, offset, None)
    data = xgb.DMatrix(columns, label=left_over - offset, nthread=1)
    trees = xgb.train({**_TREES, "base_score": 0.0, "seed": seed}, data, num_boost_round=_ROUNDS)
    return _Member(prices, offset, trees)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A fitted bag. residual_sigma: log-scale error on kernels that a member had not seen."""

    members: tuple[_Member, ...]
    operators: tuple[str, ...]
    residual_sigma: float

    @classmethod
    def fit(cls, features: Sequence[KernelFeatures], median_us: Sequence[float], seed: int) -> Surrogate:
        """Learn from measured kernels: one or more. Same input and seed, same model.

        median_us: [n], finite and positive. Raises RecordError where it is not, or lengths differ.
        """
        observed_us = _check_measured(features, median_us)
        operators = tuple(sorted({item.operator for item in features}))
        work = _work(features)
        columns = np.hstack([_log_features(features), _one_hot(features, operators)])
        count = len(observed_us)
        rng = np.random.default_rng(seed)
        members, unseen = [], np.ones((_MEMBERS, count), dtype=bool)
        for index in range(_MEMBERS):
            picked = rng.integers(count, size=count)
            unseen[index, picked] = False
            members.append(_fit_member(work[picked], columns[picked], observed_us[picked], seed + index))
        log_us = np.stack([member.log_us(work, columns) for member in members])
        return cls(tuple(members), operators, _residual_sigma(log_us, unseen, np.log(observed_us)))

    def predict(self, features: Sequence[KernelFeatures]) -> tuple[np.ndarray, np.ndarray]:
        """Median and one-sigma uncertainty, float64 [n] each, microseconds, both > 0.

        sigma_us is half the width of [median / e^s, median * e^s], s being the log-scale sigma. An
        operator of which nothing was measured adds the prior sigma.
        """
        if not features:
            return np.empty(0), np.empty(0)
        work = _work(features)
        columns = np.hstack([_log_features(features), _one_hot(features, self.operators)])
        log_us = np.stack([member.log_us(work, columns) for member in self.members])
        foreign = np.array([item.operator not in self.operators for item in features])
        variance = self.residual_sigma**2 + log_us.var(axis=0) + foreign * _PRIOR_SIGMA**2
        median_us = np.exp(log_us.mean(axis=0))
        return median_us, median_us * np.sinh(np.sqrt(variance))


def _check_measured(features: Sequence[KernelFeatures], median_us: Sequence[float]) -> np.ndarray:
    observed_us = np.asarray(median_us, dtype=np.float64)
    if observed_us.shape != (len(features),):
        raise RecordError(f"surrogate: {len(features)} kernels and latencies of shape {observed_us.shape}")
    if not len(observed_us):
        raise RecordError("surrogate: no kernel was measured; measure one or more (measure budget >= 1)")
    bad = ~(np.isfinite(observed_us) & (observed_us > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise RecordError(
            f"surrogate: kernel {row} has median_us={observed_us[row]}, which is no latency; measure it again"
        )
    return observed_us


def _residual_sigma(log_us: np.ndarray, unseen: np.ndarray, observed: np.ndarray) -> float:
    """Root mean square of out-of-bag errors, with the prior counted as one more kernel.

    log_us, unseen: [members, n]; observed: [n]. A kernel that every member saw has no error to offer.
    """
    votes = unseen.sum(axis=0)
    held_out = votes > 0
    mean = np.where(unseen, log_us, 0.0).sum(axis=0)[held_out] / votes[held_out]
    squares = float(np.sum((mean - observed[held_out]) ** 2))
    return math.sqrt((_PRIOR_SIGMA**2 + squares) / (1 + held_out.sum()))


def choose_to_measure(features: Sequence[KernelFeatures], budget: int, seed: int) -> tuple[int, ...]:
    """Indices of at most ``budget`` kernels to measure, in the order to measure them.

    The heaviest kernel first, then always the one farthest from all chosen (over
    standardised log features and the operator). Ties go to the heavier kernel, then by seed.
    O(budget * n). Raises RecordError for a budget below 1.
    """
    if budget < 1:
        raise RecordError(
            f"measure budget is {budget}; measure at least 1 kernel, the surrogate starts from it"
        )
    if not features:
        return ()
    operators = sorted({item.operator for item in features})
    columns = _log_features(features)
    spread = columns.std(axis=0)
    points = np.hstack([columns / np.where(spread > 0, spread, 1.0), 2 * _one_hot(features, operators)])
    weight = np.array([item.flops + item.bytes_moved for item in features])
    tie = np.random.default_rng(seed).permutation(len(features))
    gap = np.full(len(features), np.inf)
    chosen: list[int] = []
    for _ in range(min(budget, len(features))):
        pick = int(np.lexsort((tie, weight, gap))[-1])
        chosen.append(pick)
        gap = np.minimum(gap, np.linalg.norm(points - points[pick], axis=1))
        gap[chosen] = -1.0
    return tuple(chosen)
