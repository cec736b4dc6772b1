"""Candidates of a GPU kernel: compiled in forks, and timed in forks, which a candidate that crashes cannot outlive."""

from __future__ import annotations

import os
import tempfile

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.cuda_compiler import compile_cuda_library
from hapi_tvm.targets.cuda_reach import ThisGpu
from hapi_tvm.targets.forkserver import Outcome, shared_server
from hapi_tvm.targets.forkserver_builder import LIBRARY_NAME, remove_library
from hapi_tvm.targets.kernel_timing import shapes_of, time_library

__all__ = ["CudaBuilder", "CudaRunner"]


@derived_object
class CudaBuilder(ms.builder.PyBuilder):
    """workers: candidates compiled at once. nvcc: its path, or None to leave source. cc: as ``compile_cuda_library``
    takes it. timeout_s: for each."""

    def __init__(self, workers: int, nvcc: str | None, cc: str | None = None, timeout_s: float = 60.0) -> None:
        super().__init__()
        self.workers = workers
        self.nvcc = nvcc
        self.cc = cc
        self.timeout_s = timeout_s

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        paths = [os.path.join(tempfile.mkdtemp(prefix="hapi-kernel-"), LIBRARY_NAME) for _ in build_inputs]
        outcomes = shared_server().map(
            compile_cuda_library,
            [(item.mod, item.target, path, self.nvcc, self.cc) for item, path in zip(build_inputs, paths, strict=True)],
            timeout_s=self.timeout_s,
            workers=self.workers,
        )
        for outcome, path in zip(outcomes, paths, strict=True):
            if outcome.error is not None:
                remove_library(path)
        return [ms.builder.BuilderResult(outcome.value, outcome.error) for outcome in outcomes]


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
    """Times candidates on the GPU that ``reach`` leads to, one at a time. timeout_s: for each, all its repeats."""

    def __init__(self, reach: ThisGpu, repeats: int, min_repeat_ms: int, timeout_s: float = 30.0) -> None:
        super().__init__()
        self.reach = reach
        self.repeats = repeats
        self.min_repeat_ms = min_repeat_ms
        self.timeout_s = timeout_s

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        calls = [
            (str(item.artifact_path), shapes_of(item), self.repeats, self.min_repeat_ms) for item in runner_inputs
        ]
        return [_Future(outcome) for outcome in self.reach.attempt(time_library, calls, self.timeout_s)]
