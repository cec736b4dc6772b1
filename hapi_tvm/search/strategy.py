"""What a search mechanism is: a problem and some time go in, a design and what is known about it come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import Key
from hapi_tvm.search.problem import Problem

__all__ = ["Outcome", "Strategy", "Trace"]


@dataclass(frozen=True, slots=True)
class Trace:
    """seconds: since the start. key: of the best design known from then on."""

    seconds: float
    key: Key


@dataclass(frozen=True, slots=True)
class Outcome:
    """exits: the best design found, None where none was found that keeps the SLA; key: its rank.

    floor: no design of the grid has a first part of its key below this; minus infinity where nothing is known.
    proven: no design of the grid is better (where exits is None, none keeps the SLA). Thresholds may lie off
    the grid, so the design may even be better than the floor.
    designs: how many were evaluated. trace: every improvement, in time.
    """

    exits: Exits | None
    key: Key | None
    floor: float
    proven: bool
    designs: int
    trace: tuple[Trace, ...]


class Strategy(Protocol):
    """The contract, which one suite tests for all: keeps ``seconds`` (on ``clock``, up to the time of one batch),
    same problem and seed same answer unless the clock stops it, and what it returns keeps the SLA and the
    limits of the space."""

    @property
    def name(self) -> str: ...

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome: ...
