"""What every strategy is given: the tables, what is asked, and the finite space of designs it may search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hapi_tvm.errors import SLAError
from hapi_tvm.records import SLA, CalibrationTable, LatencyTable
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Figures, Key, Objective
from hapi_tvm.search.space import Space

__all__ = ["Layer", "Problem"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Choices, M of them, of which a design takes at most one a candidate.

    option: int64 [M], non-decreasing. threshold: float32 [M], rising within an option.
    """

    option: np.ndarray
    threshold: np.ndarray

    def __len__(self) -> int:
        return len(self.option)

    def exits(self, path) -> Exits:
        """path: choices in network order."""
        return tuple((int(self.option[choice]), float(self.threshold[choice])) for choice in path)


@dataclass(frozen=True, slots=True)
class Problem:
    """A design of the space takes all its choices from one of ``layers``: there is one layer if every exit has
    its own threshold, and one a threshold if they share it. enough: a rank at which a heuristic may stop; None where it
    cannot know that nothing is better."""

    instance: Instance
    objective: Objective
    space: Space
    layers: tuple[Layer, ...]
    enough: Key | None = None

    @classmethod
    def of(cls, calibration: CalibrationTable, latency: LatencyTable, sla: SLA, space: Space) -> Problem:
        """Raises RecordError if the tables, SLAError if the SLA and the space contradict each other."""
        instance = Instance.from_tables(calibration, latency, latency_quantile=sla.latency_quantile)
        _check(instance, sla, space)
        objective = Objective.from_sla(sla, instance.samples)
        return cls(instance, objective, space, tuple(_layers(instance, objective, space)))

    def asking(self, objective: Objective) -> Problem:
        """The same space under another objective."""
        return replace(self, objective=objective)

    @property
    def allowed(self) -> np.ndarray:
        """bool [C]: the options that may be placed."""
        return _allowed(self.instance, self.space)

    def figures(self, exits: Exits) -> Figures:
        return figures_of(self.instance, exits)

    def key(self, exits: Exits) -> Key:
        return self.objective.key(self.figures(exits))

    def feasible(self, exits: Exits) -> bool:
        """Whether the design keeps the SLA and the limits of the space; its thresholds may be off the grid."""
        return self.holds(exits) and bool(self.objective.feasible(self.figures(exits)))

    def holds(self, exits: Exits) -> bool:
        """Whether the design keeps the limits of the space."""
        placed = [option for option, _ in exits]
        candidates = set(self.instance.candidate[placed].tolist())
        size = sum(self.space.option_bytes[option] for option in placed) if self.space.option_bytes else 0
        return (
            len(exits) <= self.objective.max_exits
            and bool(self.allowed[placed].all())
            and self.space.must <= candidates
            and (self.space.max_bytes is None or size <= self.space.max_bytes)
            and (not self.space.shared or len({at for _, at in exits if at > 0}) <= 1)
        )


def _layers(instance: Instance, objective: Objective, space: Space) -> Iterator[Layer]:
    """With a deadline, threshold 0 is always among the choices: an exit that answers whoever comes."""
    allowed = np.flatnonzero(_allowed(instance, space))
    extra = np.zeros(1 if "deadline" in objective.budgets_ps else 0, dtype=np.float32)
    if not space.shared:
        yield _layer({c: np.append(extra, _quantiles(instance.confidence[:, c], space.grid)) for c in allowed})
    elif allowed.size:
        for threshold in _quantiles(instance.confidence[:, allowed].ravel(), space.grid):
            yield _layer({c: np.append(extra, threshold) for c in allowed})
    else:
        yield _layer({})


def _layer(thresholds: dict[int, np.ndarray]) -> Layer:
    """thresholds: float32, by option."""
    distinct = {option: np.unique(values) for option, values in thresholds.items()}
    option = np.repeat(np.array(list(distinct), dtype=np.int64), [len(values) for values in distinct.values()])
    return Layer(option, np.concatenate([np.empty(0, dtype=np.float32), *distinct.values()]))


def _quantiles(confidence: np.ndarray, grid: int) -> np.ndarray:
    """float32 [at most ``grid``], rising; each is a confidence that occurs."""
    ordered = np.sort(confidence)
    place = np.rint(np.linspace(0, ordered.size - 1, grid)).astype(np.int64)
    return np.unique(ordered[place])


def _allowed(instance: Instance, space: Space) -> np.ndarray:
    fits = ~np.isin(instance.candidate, list(space.must_not))
    if space.kinds is not None:
        fits &= np.array([option.kind in space.kinds for option in instance.options], dtype=bool)
    return fits


def _check(instance: Instance, sla: SLA, space: Space) -> None:
    candidates = len(instance.reach_ps) - 1
    for name in ("must", "must_not"):
        for candidate in sorted(getattr(space, name)):
            if not 0 <= candidate < candidates:
                raise SLAError(f"Space.{name} names candidate {candidate}; there are {candidates}, from 0")
    if len(space.must) > sla.max_exits:
        raise SLAError(f"Space.must names {len(space.must)} candidates and SLA.max_exits={sla.max_exits}: raise it")
    known = {option.kind for option in instance.options}
    for kind in space.kinds or ():
        if kind not in known:
            raise SLAError(f"Space.kinds names {kind!r}; the tables have {', '.join(sorted(known))}")
    if space.option_bytes and len(space.option_bytes) != len(instance.options):
        raise SLAError(f"Space.option_bytes has {len(space.option_bytes)} sizes for {len(instance.options)} options")
    if missing := space.must - set(instance.candidate[_allowed(instance, space)].tolist()):
        raise SLAError(f"Space.must names candidate {min(missing)}, which has no branch of the kinds {space.kinds}")
