"""Run what a builder has built, and take the results one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets import Target
from hapi_tvm.targets.forkserver_builder import remove_library

__all__ = ["results_in_order"]


def results_in_order(
    built: Sequence[ms.builder.BuilderResult],
    arguments: Sequence[Sequence[ms.arg_info.ArgInfo]],
    runner: ms.runner.PyRunner,
    target: Target,
) -> Iterator[ms.runner.RunnerResult]:
    """The result of each candidate, built or not; each library is removed behind its result.

    arguments: of each. On this machine a candidate runs when its result is asked for; of several boards each runs the
    next one meanwhile.
    """
    device = str(target.tvm_target.kind.name)
    inputs = [
        ms.runner.RunnerInput(str(artifact.artifact_path), device, taken)
        for artifact, taken in zip(built, arguments, strict=True)
        if artifact.error_msg is None
    ]
    futures = iter(runner.run(inputs) if inputs else ())
    for artifact in built:
        if artifact.error_msg is not None:
            yield ms.runner.RunnerResult(None, str(artifact.error_msg))
            continue
        try:
            result = next(futures).result()
        finally:
            remove_library(str(artifact.artifact_path))
        yield result
