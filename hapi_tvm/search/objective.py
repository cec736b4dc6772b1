"""What an SLA asks of a design: limits that it must keep, and an order among those that keep them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from statistics import NormalDist

import numpy as np

from hapi_tvm.records import DROP_LIMIT, LATENCY_LIMITS, SLA
from hapi_tvm.search.instance import PS_PER_US

__all__ = ["Figures", "Goal", "Objective", "best_index", "better", "drop_upper", "rank_count"]


class Goal(Enum):
    """FASTEST: least mean, then accuracy. ACCURATE: most accuracy, then mean. NEAREST: least excess
    over the latency targets, then mean. FRONT: all designs that no other beats in mean and accuracy, ranked as
    FASTEST. Last, in each: fewer exits."""

    FASTEST = "fastest"
    ACCURATE = "accurate"
    NEAREST = "nearest"
    FRONT = "front"


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one design (integers) or of many (int64 arrays of one shape), or bounds on them.

    total_ps: summed over the samples. lost, gained: samples that the backbone alone, and the design
    alone, gets right. p95_ps, p99_ps, worst_ps, deadline_ps: as in ``Prediction``. exits: how many are placed.
    """

    total_ps: np.ndarray | int
    lost: np.ndarray | int
    gained: np.ndarray | int
    p95_ps: np.ndarray | int
    p99_ps: np.ndarray | int
    worst_ps: np.ndarray | int
    deadline_ps: np.ndarray | int
    exits: np.ndarray | int


Key = tuple[np.ndarray | float, np.ndarray | int, np.ndarray | int]
"""Compared from left to right; less is better."""


def rank_count(percent: int, samples: int) -> int:
    """How many samples must be no slower than the percentile: the least k with k / samples >= percent %."""
    return -(-percent * samples // 100)


def drop_upper(lost, gained, samples: int, z: float):
    """Upper limit of the accuracy drop, as a share of samples; arrays or integers.

    The drop is the mean of ``samples`` paired differences, each -1, 0 or 1, so its variance is
    (lost + gained) / samples - drop^2. Normal approximation, nothing added for discreteness (ours).
    """
    drop = (lost - gained) / samples
    variance = np.maximum((lost + gained) / samples - drop * drop, 0.0)
    return drop + z * np.sqrt(variance / samples)


@dataclass(frozen=True, slots=True)
class Objective:
    """An SLA over ``samples`` samples. budgets_ps: by latency metric, rounded up to whole picoseconds.
    targets_ps: likewise; what NEAREST approaches, and holds no design to."""

    goal: Goal
    samples: int
    z: float
    max_drop: float | None
    budgets_ps: Mapping[str, int]
    max_exits: int
    targets_ps: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_sla(cls, sla: SLA, samples: int) -> Objective:
        return cls(
            goal=Goal.ACCURATE if sla.max_accuracy_drop is None else Goal.FASTEST,
            samples=samples,
            z=NormalDist().inv_cdf(sla.drop_confidence),
            max_drop=sla.max_accuracy_drop,
            budgets_ps={metric: math.ceil(us * PS_PER_US) for metric, us in sla.budgets_us.items()},
            max_exits=sla.max_exits,
        )

    def nearest(self) -> Objective:
        """The same accuracy limit; the latency budgets become what is to be approached."""
        return replace(self, goal=Goal.NEAREST, budgets_ps={}, targets_ps=self.budgets_ps)

    @property
    def limits(self) -> tuple[str, ...]:
        """Fields of the SLA that limit the accuracy drop or a latency."""
        drop = () if self.max_drop is None else (DROP_LIMIT,)
        return drop + tuple(LATENCY_LIMITS[metric] for metric in self.budgets_ps)

    def closest_to(self, limit: str) -> Objective:
        """What comes closest to one of ``limits`` while all others hold: the least latency of that metric, or the
        most accuracy."""
        if limit == DROP_LIMIT:
            return replace(self, goal=Goal.ACCURATE, max_drop=None)
        held = {metric: ps for metric, ps in self.budgets_ps.items() if LATENCY_LIMITS[metric] != limit}
        approached = {metric: ps for metric, ps in self.budgets_ps.items() if metric not in held}
        return replace(self, goal=Goal.NEAREST, budgets_ps=held, targets_ps=approached)

    def alone(self, limit: str) -> Objective:
        """The same with one of ``limits`` only."""
        kept = {metric: ps for metric, ps in self.budgets_ps.items() if LATENCY_LIMITS[metric] == limit}
        return replace(self, max_drop=self.max_drop if limit == DROP_LIMIT else None, budgets_ps=kept)

    def feasible(self, figures: Figures):
        """bool, of the figures' shape."""
        return self.within_budgets(figures) & self.within_drop(figures.lost, figures.gained)

    def within_budgets(self, figures: Figures):
        """bool: also the pruning test when the figures are lower bounds."""
        fits = np.ones(np.shape(figures.total_ps), dtype=bool)
        for spent_ps, budget_ps in self._spent(figures, self.budgets_ps):
            fits = fits & (spent_ps <= budget_ps)
        return fits

    def within_drop(self, lost, gained):
        if self.max_drop is None:
            return np.ones(np.shape(lost), dtype=bool)
        return drop_upper(lost, gained, self.samples, self.z) <= self.max_drop

    def drop_possible(self, lost, more_lost, gained, more_gained):
        """Whether some lost' in [lost, lost + more_lost] and gained' in [gained, gained + more_gained]
        keep the accuracy limit; may answer True for none.

        The variance is concave in (lost, gained), hence so is its root, hence so is the upper limit:
        over a box it is least at a corner (ours).
        """
        possible = np.zeros(np.shape(lost), dtype=bool)
        for lost_corner in (lost, lost + more_lost):
            for gained_corner in (gained, gained + more_gained):
                possible = possible | self.within_drop(lost_corner, gained_corner)
        return possible

    def gap(self, best: float, floor: float) -> float:
        """How far a design may be from the best, from the first parts of its key and of the floor: as a share of
        the floor's latency where latency is asked for, else as a share of the samples. Never below 0."""
        if best <= floor:
            return 0.0
        if self.goal is Goal.ACCURATE:
            return (best - max(floor, -self.samples)) / self.samples  # nobody gains more than every sample
        return best / floor - 1 if floor > 0 else math.inf

    def excess(self, figures: Figures):
        """float: the largest ratio of a latency to its budget; 0 without budgets."""
        return self._largest_ratio(figures, self.budgets_ps)

    def key(self, figures: Figures) -> Key:
        drop = figures.lost - figures.gained
        if self.goal in (Goal.FASTEST, Goal.FRONT):
            return figures.total_ps, drop, figures.exits
        if self.goal is Goal.ACCURATE:
            return drop, figures.total_ps, figures.exits
        return self._largest_ratio(figures, self.targets_ps), figures.total_ps, figures.exits

    def _largest_ratio(self, figures: Figures, limits_ps: Mapping[str, int]):
        worst = np.zeros(np.shape(figures.total_ps))
        for spent_ps, limit_ps in self._spent(figures, limits_ps):
            worst = np.maximum(worst, spent_ps / limit_ps)
        return worst

    def _spent(self, figures: Figures, limits_ps: Mapping[str, int]):
        """(latency, limit) of each metric of ``limits_ps``; the mean as sums over the samples."""
        for metric, budget_ps in limits_ps.items():
            if metric == "mean":
                yield figures.total_ps, min(budget_ps * self.samples, 2**62)
            else:
                yield getattr(figures, f"{metric}_ps"), min(budget_ps, 2**62)


def better(key: Key, than: Key | None):
    """bool, of the key's shape: strictly before ``than``; everything is before None."""
    if than is None:
        return np.ones(np.shape(key[0]), dtype=bool)
    first, second, third = (
        (np.less(ours, theirs), np.equal(ours, theirs)) for ours, theirs in zip(key, than, strict=True)
    )
    return first[0] | (first[1] & (second[0] | (second[1] & third[0])))


def best_index(key: Key, allowed: np.ndarray) -> int | None:
    """Index of the least key among those allowed (bool [M]), the first of equals; None if none is."""
    index = np.flatnonzero(allowed)
    for part in key:
        if index.size == 0:
            return None
        values = np.broadcast_to(part, allowed.shape)[index]
        index = index[values == values.min()]
    return int(index[0]) if index.size else None
