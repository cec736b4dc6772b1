"""A MetaSchedule runner that times candidates in forks, one at a time, with the target's thread count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.pool import VARIABLE
from hapi_tvm.targets.forkserver import Outcome, shared_server
from hapi_tvm.targets.here import Here
from hapi_tvm.targets.kernel_timing import shapes_of, time_library

__all__ = ["ForkServerRunner", "runtime_environment"]


def runtime_environment(threads: int) -> dict[str, str]:
    """What TVM's thread pool reads at its start, which comes with the first parallel kernel of a process."""
    return {VARIABLE: str(threads)}


def _time_here(*arguments: Any) -> list[float]:
    return time_library(Here(), *arguments)


@derived_object
class _Future(ms.runner.PyRunnerFuture):
    """Runs when its result is asked for, so that the caller has each before the next one runs."""

    def __init__(self, call: tuple, timeout_s: float, environment: Mapping[str, str]) -> None:
        super().__init__()
        self.call = call
        self.timeout_s = timeout_s
        self.environment = environment
        self.outcome: Outcome | None = None

    def done(self) -> bool:
        return self.outcome is not None

    def result(self) -> ms.runner.RunnerResult:
        if self.outcome is None:
            (self.outcome,) = shared_server().map(
                _time_here, [self.call], self.timeout_s, environment=self.environment
            )
        return ms.runner.RunnerResult(self.outcome.value, self.outcome.error)


@derived_object
class ForkServerRunner(ms.runner.PyRunner):
    """threads: of TVM's runtime in the fork. timeout_s: for each candidate, all its repeats."""

    def __init__(self, threads: int, repeats: int, min_repeat_ms: int, timeout_s: float = 20.0) -> None:
        super().__init__()
        self.threads = threads
        self.repeats = repeats
        self.min_repeat_ms = min_repeat_ms
        self.timeout_s = timeout_s

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        environment = runtime_environment(self.threads)
        return [
            _Future(
                (str(item.artifact_path), shapes_of(item), self.repeats, self.min_repeat_ms),
                self.timeout_s,
                environment,
            )
            for item in runner_inputs
        ]
