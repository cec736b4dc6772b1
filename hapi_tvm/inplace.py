"""Segments and branches timed in their places in the network.

A kernel alone, called in a loop, finds its data in the nearest cache. In its place it finds what the kernel
before it left, and takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.relax import VirtualMachine

from hapi_tvm.compiling import compile_module
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.cut_segments import exit_name, segment_name
from hapi_tvm.progress import track
from hapi_tvm.records import ExitGraph
from hapi_tvm.targets import Target

REPEATS = 60
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class InPlace:
    """Raw repeats in microseconds, without the time to enter the module: E + 1 segments, every option."""

    segments_us: tuple[tuple[float, ...], ...]
    branches_us: tuple[tuple[float, ...], ...]


def measure_in_place(
    network: LoweredNetwork,
    graph: ExitGraph,
    schedules: Mapping[str, Scheduled],
    target: Target,
    entry_us: float,
) -> InPlace:
    """Run the over-provisioned network piece by piece, on one random image, and time every piece.

    entry_us: what calling a function of the module takes by itself; taken off every sample.
    """
    machine = VirtualMachine(compile_module(network.module, schedules, target), target.device())
    segments = [machine[segment_name(index)] for index in range(len(network.segments))]
    branches = [(option.candidate, machine[exit_name(option)]) for option in graph.options]
    shape = [int(extent) for extent in network.module[segment_name(0)].params[0].ty.shape]
    image = tvm.runtime.tensor(np.random.default_rng(0).random(shape, dtype=np.float32))

    segment_rows: list[list[float]] = [[] for _ in segments]
    branch_rows: list[list[float]] = [[] for _ in branches]
    for repeat in track(range(WARM_UP + REPEATS), WARM_UP + REPEATS, "measure segments"):
        tensors = [image]
        times = []
        for segment in segments:
            tensor, took_us = _timed(segment, tensors[-1])
            tensors.append(tensor)
            times.append(took_us)
        # A branch reads what its segment has just written, so the segment runs again before it.
        branch_times = []
        for candidate, branch in branches:
            entered = segments[candidate](tensors[candidate])
            branch_times.append(_timed(branch, entered)[1])
        if repeat >= WARM_UP:
            for rows, taken in ((segment_rows, times), (branch_rows, branch_times)):
                for row, took_us in zip(rows, taken, strict=True):
                    row.append(max(0.0, took_us - entry_us))
    return InPlace(tuple(map(tuple, segment_rows)), tuple(map(tuple, branch_rows)))


def _timed(function: Callable, tensor: tvm.runtime.Tensor) -> tuple[tvm.runtime.Tensor, float]:
    began = time.perf_counter()
    result = function(tensor)
    return result, 1e6 * (time.perf_counter() - began)
