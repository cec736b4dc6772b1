"""A MetaSchedule builder whose candidates are compiled in forks: parallel, isolated, with a time-out.

TVM's LocalBuilder starts its workers anew for each batch, and each pays tens of seconds of imports.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.cross import cross_linker
from hapi_tvm.targets.forkserver import shared_server
from hapi_tvm.targets.rules.prefetch import PrefetchWeights

__all__ = ["ForkServerBuilder", "build_in_forks", "compile_library", "remove_library"]

LIBRARY_NAME = "kernel.so"


def _link(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
    """Link with ``ld`` alone: 4 ms, where the compiler driver takes 60 to 100 ms (binutils, x86-64).

    ``-z now`` makes a missing symbol an error of the load, which names it, and not of the first call.
    """
    subprocess.run(["ld", "-shared", "-z", "now", "-o", output, *objects], check=True, capture_output=True)


def compile_library(mod: tvm.IRModule, target: tvm.target.Target, path: str, cc: str | None = None) -> str:
    """Compile to a shared library at ``path``, in a folder that exists, and return the path.

    cc: a compiler that links for the target, where this machine's linker does not.
    """
    mod = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod)
    library = tvm.tirx.build(PrefetchWeights()(mod), target=target)
    if cc is not None:
        library.export_library(path, fcompile=cross_linker(cc))
    elif shutil.which("ld"):
        library.export_library(path, fcompile=_link)
    else:
        library.export_library(path)
    return path


def remove_library(path: str) -> None:
    """Remove a library that ``ForkServerBuilder`` built, with the folder made for it."""
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def build_in_forks(
    build_inputs: list[ms.builder.BuilderInput], workers: int, timeout_s: float, cc: str | None = None
) -> list[ms.builder.BuilderResult]:
    """A library for each candidate, or why there is none. workers, timeout_s, cc: as the builders take them."""
    # Made here and not in the fork, which may be killed before it could remove anything.
    paths = [os.path.join(tempfile.mkdtemp(prefix="hapi-kernel-"), LIBRARY_NAME) for _ in build_inputs]
    outcomes = shared_server().map(
        compile_library,
        [(item.mod, item.target, path, cc) for item, path in zip(build_inputs, paths, strict=True)],
        timeout_s=timeout_s,
        workers=workers,
    )
    for outcome, path in zip(outcomes, paths, strict=True):
        if outcome.error is not None:
            remove_library(path)
    return [ms.builder.BuilderResult(outcome.value, outcome.error) for outcome in outcomes]


@derived_object
class ForkServerBuilder(ms.builder.PyBuilder):
    """workers: candidates compiled at once. timeout_s: for each."""

    def __init__(self, workers: int, timeout_s: float = 30.0) -> None:
        super().__init__()
        self.workers = workers
        self.timeout_s = timeout_s

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        return build_in_forks(build_inputs, self.workers, self.timeout_s)
