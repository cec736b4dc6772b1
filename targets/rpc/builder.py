"""A MetaSchedule builder of candidates that run on another machine."""

from __future__ import annotations

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.forkserver_builder import build_in_forks

__all__ = ["CrossBuilder"]


@derived_object
class CrossBuilder(ms.builder.PyBuilder):
    """Candidates compiled in forks, like ``ForkServerBuilder``'s, and linked for the target's machine.

    A board gets a library that it can load as it is: TVM's RPC builder sends objects, which the board would
    have to link. workers: candidates compiled at once. cc: path of a compiler that links for the target
    (``find_cross_compiler``); None where its machine is like this one. timeout_s: for each candidate.
    """

    def __init__(self, workers: int, cc: str | None = None, timeout_s: float = 30.0) -> None:
        super().__init__()
        self.workers = workers
        self.cc = cc
        self.timeout_s = timeout_s

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        return build_in_forks(build_inputs, self.workers, self.timeout_s, self.cc)
