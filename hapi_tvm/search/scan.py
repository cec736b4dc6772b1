"""The figures of every threshold that one exit could have, the other exits held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.evaluator import leave_costs_ps, leave_places, right_answers
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Figures, rank_count

__all__ = ["Others", "Scan", "falling_order"]


def falling_order(instance: Instance) -> np.ndarray:
    """int64 [N, C]: the samples by falling confidence, for each option."""
    return np.argsort(-instance.confidence, axis=0, kind="stable")


@dataclass(frozen=True, slots=True)
class Others:
    """The exits that are held. leave: int64 [N], the place among ``exits`` where each sample leaves.
    right: bool [N], whether it is answered right there."""

    exits: Exits
    leave: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, instance: Instance, exits: Exits) -> Others:
        leave = leave_places(instance, exits)
        return cls(exits, leave, right_answers(instance, exits, leave))


@dataclass(frozen=True, slots=True)
class Scan:
    """place: where the scanned exit stands among the others. threshold: float32 [M], falling: each
    confidence that an arriving sample has, and 0. figures: [M] each, of the design with that threshold."""

    place: int
    threshold: np.ndarray
    figures: Figures

    @classmethod
    def of(cls, instance: Instance, others: Others, option: int, falling: np.ndarray) -> Scan:
        """falling: int64 [N], the samples by falling confidence in ``option``.

        One pass over the samples that arrive: the m with the highest confidence leave here, the rest go on as
        they would without this exit, so every figure is a running sum over m.
        """
        place = sum(int(instance.candidate[other] < instance.candidate[option]) for other, _ in others.exits)
        arrivals = falling[others.leave[falling] >= place]
        confidence = instance.confidence[arrivals, option]
        last_of_ties = np.flatnonzero(np.diff(confidence, append=np.float32(-1)) != 0)
        threshold = confidence[last_of_ties]
        if threshold.size and threshold[-1] > 0:
            last_of_ties, threshold = np.append(last_of_ties, last_of_ties[-1]), np.append(threshold, np.float32(0))
        exits = (*others.exits[:place], (option, 1.0), *others.exits[place:])
        cost_ps = leave_costs_ps(instance, exits)
        histogram = _histograms(others.leave, arrivals, place, len(exits))[last_of_ties]
        reached = np.cumsum(histogram, axis=1)
        lost, gained = _flips(instance, others.right, arrivals, option)
        return cls(
            place=place,
            threshold=threshold,
            figures=Figures(
                total_ps=histogram @ cost_ps,
                lost=lost[last_of_ties],
                gained=gained[last_of_ties],
                p95_ps=cost_ps[np.argmax(reached >= rank_count(95, instance.samples), axis=1)],
                p99_ps=cost_ps[np.argmax(reached >= rank_count(99, instance.samples), axis=1)],
                worst_ps=np.full(len(last_of_ties), cost_ps[-1]),
                deadline_ps=_deadlines_ps(exits, cost_ps, place, threshold),
                exits=np.full(len(last_of_ties), len(exits)),
            ),
        )


def _histograms(leave: np.ndarray, arrivals: np.ndarray, place: int, exits: int) -> np.ndarray:
    """int64 [A, exits + 1]: where samples leave if the first 1, 2, ... A arrivals leave at ``place``."""
    without = np.bincount(leave, minlength=exits)
    histogram = np.empty((len(arrivals), exits + 1), dtype=np.int64)
    histogram[:, :place] = without[:place]
    histogram[:, place] = np.arange(1, len(arrivals) + 1)
    for later in range(place, exits):
        histogram[:, later + 1] = without[later] - np.cumsum(leave[arrivals] == later)
    return histogram


def _flips(instance: Instance, right: np.ndarray, arrivals: np.ndarray, option: int) -> tuple[np.ndarray, np.ndarray]:
    """Lost and gained, int64 [A] each, if the first 1, 2, ... A arrivals take the answer of ``option``."""
    backbone = instance.right[:, -1]
    change = np.cumsum(instance.right[arrivals, option].astype(np.int64) - right[arrivals])
    change_on_gains = np.cumsum(
        np.where(backbone[arrivals], 0, instance.right[arrivals, option].astype(np.int64) - right[arrivals])
    )
    lost = np.count_nonzero(backbone & ~right) - (change - change_on_gains)
    return lost, np.count_nonzero(right & ~backbone) + change_on_gains


def _deadlines_ps(exits: Exits, cost_ps: np.ndarray, place: int, threshold: np.ndarray) -> np.ndarray:
    """int64 [M]: ``Figures.deadline_ps`` for each threshold of the exit at ``place``."""
    stops = [at for at, (_, held) in enumerate(exits) if at != place and held <= 0]
    held_ps = cost_ps[stops[0] if stops else -1]
    return np.where(threshold <= 0, np.minimum(held_ps, cost_ps[place]), held_ps)
