"""Whatever fails while kernels are tuned, each ends with a schedule that computes the right numbers."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time

import kernel_samples as samples
import pytest
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm import targets
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import target_folder
from hapi_tvm.kernel_search import DEFAULT_ATTEMPTS, FIRST_BATCH
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder
from hapi_tvm.targets.forkserver_runner import ForkServerRunner
from hapi_tvm.targets.llvm import LlvmTarget
from hapi_tvm.targets.rules.blocks import child_blocks, traced
from hapi_tvm.tuning import HOPELESS, Trial, best_schedules, tune

HERE = targets.llvm()
FIELDS = {field.name: getattr(HERE, field.name) for field in dataclasses.fields(HERE)}
FUNCS = {
    "convolution": samples.blocked(16, 16, 14, epilogue=("bias", "residual", "relu")),
    "dense": samples.dense(64, 10),
}
KERNELS = [Kernel(kernel_key(func), name, func) for name, func in FUNCS.items()]
CONVOLUTION = KERNELS[0]


@dataclasses.dataclass(frozen=True, slots=True)
class NothingBuilds(LlvmTarget):
    """Its compiler never finishes in time."""

    def builder(self):
        return ForkServerBuilder(workers=2, timeout_s=0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class NothingRuns(LlvmTarget):
    """Its kernels never come back in time."""

    def runner(self, repeats=5, min_repeat_ms=2):
        return ForkServerRunner(self.threads, repeats, min_repeat_ms, timeout_s=0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class RaisingDefault(LlvmTarget):
    """Its default rule has a bug."""

    def default_schedule(self, func):
        raise IndexError("loops[7] of 5")


@dataclasses.dataclass(frozen=True, slots=True)
class RaisingSpace(LlvmTarget):
    """Its space has a bug, in Python where TVM calls it."""

    def space(self, func):
        def draw(schedule: s_tir.Schedule):
            return schedule.get_loops(child_blocks(schedule)[0])[99]

        return ms.space_generator.ScheduleFn(draw, sch_rules=[], postprocs=[], mutator_probs={})


def another_sum(func) -> s_tir.Schedule:
    """A schedule of a kernel with the same arguments that computes something else: the weights are left out of it."""
    schedule = traced(func)
    shapes = [tuple(map(int, func.buffer_map[param].shape)) for param in func.params]
    return traced(samples.ignoring_all_but_the_first(shapes)) if shapes else schedule


@dataclasses.dataclass(frozen=True, slots=True)
class WrongDefault(LlvmTarget):
    """Its default rule is fast and wrong."""

    def default_schedule(self, func):
        return another_sum(func)


@dataclasses.dataclass(frozen=True, slots=True)
class WrongSpace(LlvmTarget):
    """Every schedule of its space skips the last column of the kernel's output."""

    def space(self, func):
        def draw(schedule: s_tir.Schedule):
            return [another_sum(func)]

        return ms.space_generator.ScheduleFn(draw, sch_rules=[], postprocs=[], mutator_probs={})


@dataclasses.dataclass(frozen=True, slots=True)
class CrashingCode(LlvmTarget):
    """Its default schedule unrolls what no compiler comes back from."""

    def default_schedule(self, func):
        return traced(samples.unlinked(func))

    def builder(self):
        return ForkServerBuilder(workers=2, timeout_s=20)
