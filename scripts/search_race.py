"""One strategy on one instance of ``bench_search.py``, in a worker process, and what it found when."""

from __future__ import annotations

import functools
import pathlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from hapi_tvm.search.batch import Batch
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.genome import Genome
from hapi_tvm.search.objective import Key
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies import STRATEGIES
from hapi_tvm.search.strategy import Outcome, Strategy
from search_instances import Case, quick_cases

__all__ = ["CLOCKS", "EXACT", "Result", "batch_designs_per_second", "race", "warm_up"]

EXACT = "exact"

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""By name. No strategy computes on more than one core or waits, so on an idle machine the two agree."""


@dataclass(frozen=True, slots=True)
class Result:
    """seconds: the time it was given; took_s: what it used of it. peak_bytes: the most memory that the worker held
    meanwhile, with the interpreter and all libraries (resident set)."""

    case: str
    strategy: str
    seconds: float
    took_s: float
    outcome: Outcome
    peak_bytes: int

    def key_at(self, seconds: float) -> Key | None:
        """Of the best design known after so long."""
        return next((point.key for point in reversed(self.outcome.trace) if point.seconds <= seconds), None)

    def seconds_to(self, key: Key) -> float | None:
        """When it first knew a design as good as ``key``."""
        return next((point.seconds for point in self.outcome.trace if point.key <= key), None)


def race(
    case: Case, strategy: str, seconds: float, seed: int, clock: str = "wall", enough: Key | None = None
) -> Result:
    """clock: of CLOCKS. enough: as of ``Problem``."""
    clock_s = CLOCKS[clock]
    problem = replace(_problem(case), enough=enough)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    started_s = clock_s()
    outcome = _strategy(strategy).solve(problem, seconds=seconds, seed=seed, clock=clock_s)
    took_s = clock_s() - started_s
    peak = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return Result(case.name, strategy, seconds, took_s, outcome, 1024 * int(peak[1]))


def warm_up(strategies: Iterable[str]) -> None:
    """Compile, or load, what each strategy calls, and import its library, before the first clock starts."""
    for case in quick_cases():
        for strategy in strategies:
            _strategy(strategy).solve(case.problem()[0], seconds=0.05)


def batch_designs_per_second(case: Case, *, rounds: int = 7, designs: int = 100_000) -> float:
    """Of ``Batch`` on one core, random designs of up to as many exits as allowed: the median of ``rounds``."""
    problem = _problem(case)
    batch = Batch(problem)
    genes = Genome.of(problem, batch.genes).sparse(designs, np.random.default_rng(0))
    rates = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        batch.figures(genes)
        rates.append(designs / (time.perf_counter() - started_s))
    return float(np.median(rates))


@functools.lru_cache(maxsize=1)
def _problem(case: Case) -> Problem:
    return case.problem()[0]


def _strategy(name: str) -> Strategy:
    """Thresholds on the grid for all, so that all search the same designs."""
    return Exact(polish=False) if name == EXACT else STRATEGIES[name]
