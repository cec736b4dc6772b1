"""Candidates of a GPU kernel: compiled in forks, and timed in forks, which a candidate that crashes cannot outlive."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.cuda_compiler import compile_cuda_library
from hapi_tvm.targets.forkserver import Outcome, shared_server
from hapi_tvm.targets.forkserver_builder import LIBRARY_NAME, remove_library
from hapi_tvm.targets.forkserver_runner import Shapes

__all__ = ["CudaBuilder", "CudaRunner", "time_on_gpu"]


@derived_object
class CudaBuilder(ms.builder.PyBuilder):
    """workers: candidates compiled at once. nvcc: its path, or None to leave source. timeout_s: for each."""

    def __init__(self, workers: int, nvcc: str | None, timeout_s: float = 60.0) -> None:
        super().__init__()
        self.workers = workers
        self.nvcc = nvcc
        self.timeout_s = timeout_s

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        paths = [os.path.join(tempfile.mkdtemp(prefix="hapi-kernel-"), LIBRARY_NAME) for _ in build_inputs]
        outcomes = shared_server().map(
            compile_cuda_library,
            [(item.mod, item.target, path, self.nvcc) for item, path in zip(build_inputs, paths, strict=True)],
            timeout_s=self.timeout_s,
            workers=self.workers,
        )
        for outcome, path in zip(outcomes, paths, strict=True):
            if outcome.error is not None:
                remove_library(path)
        return [ms.builder.BuilderResult(outcome.value, outcome.error) for outcome in outcomes]


def time_on_gpu(path: str, shapes: Shapes, repeats: int, min_repeat_ms: int) -> list[float]:
    """Seconds of one call on the first GPU, by its own clock, ``repeats`` times, each the mean over at least
    ``min_repeat_ms``; warmed up. Call it in a fork: a process that has used a GPU cannot be forked."""
    device = tvm.cuda(0)
    library = tvm.runtime.load_module(path)
    random = np.random.default_rng(0)
    arguments = [tvm.runtime.tensor(random.standard_normal(shape, dtype=np.float32), device) for shape in shapes]
    evaluator = library.time_evaluator("main", device, number=1, repeat=repeats + 1, min_repeat_ms=min_repeat_ms)
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
class CudaRunner(ms.runner.PyRunner):
    """Times candidates on the first GPU, one at a time. timeout_s: for each candidate, all its repeats."""

    def __init__(self, repeats: int, min_repeat_ms: int, timeout_s: float = 30.0) -> None:
        super().__init__()
        self.repeats = repeats
        self.min_repeat_ms = min_repeat_ms
        self.timeout_s = timeout_s

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        calls = [
            (
                str(item.artifact_path),
                tuple(tuple(int(size) for size in info.shape) for info in item.args_info),
                self.repeats,
                self.min_repeat_ms,
            )
            for item in runner_inputs
        ]
        return [_Future(outcome) for outcome in shared_server().map(time_on_gpu, calls, self.timeout_s)]
