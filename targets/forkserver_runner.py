"""A MetaSchedule runner that times candidates in forks, one at a time, with the target's thread count."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.pool import VARIABLE
from hapi_tvm.targets.forkserver import Outcome, shared_server

__all__ = ["ForkServerRunner", "random_arguments", "runtime_environment", "time_library"]

Shapes = tuple[tuple[int, ...], ...]


def runtime_environment(threads: int) -> dict[str, str]:
    """What TVM's thread pool reads at its start, which comes with the first parallel kernel of a process."""
    return {VARIABLE: str(threads)}


def random_arguments(shapes: Shapes, seed: int) -> list[tvm.runtime.Tensor]:
    """float32 tensors on the CPU, standard normal: no denormals, which are slow."""
    random = np.random.default_rng(seed)
    return [tvm.runtime.tensor(random.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def time_library(path: str, shapes: Shapes, repeats: int, min_repeat_ms: int) -> list[float]:
    """Seconds of one call, ``repeats`` times, each the mean over at least ``min_repeat_ms``; warmed up."""
    library = tvm.runtime.load_module(path)
    arguments = random_arguments(shapes, seed=0)
    evaluator = library.time_evaluator("main", tvm.cpu(0), number=1, repeat=repeats + 1, min_repeat_ms=min_repeat_ms)
    return [float(seconds) for seconds in evaluator(*arguments).results][1:]


@derived_object
class _Future(ms.runner.PyRunnerFuture):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome

    def done(self) -> bool:
        return True

    def result(self) -> ms.runner.RunnerResult:
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
        outcomes = shared_server().map(
            time_library,
            [
                (
                    str(item.artifact_path),
                    tuple(tuple(int(size) for size in info.shape) for info in item.args_info),
                    self.repeats,
                    self.min_repeat_ms,
                )
                for item in runner_inputs
            ],
            timeout_s=self.timeout_s,
            environment=runtime_environment(self.threads),
        )
        return [_Future(outcome) for outcome in outcomes]
