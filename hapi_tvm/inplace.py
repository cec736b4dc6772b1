"""Segments and branches timed in their places in the network.

A kernel alone, called in a loop, finds its data in the nearest cache. In its place it finds what the kernel
before it left, and takes longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hapi_tvm.compiling import compile_module
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.cut_segments import exit_name, segment_name
from hapi_tvm.passes.piece_timeline import PieceTimeline
from hapi_tvm.progress import track
from hapi_tvm.records import ExitGraph
from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Place, Program
from hapi_tvm.timeline import Step

REPEATS = 60
WARM_UP = 5
TIMEOUT_S = 600.0


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
    steps = _steps(len(network.segments), graph)
    module = PieceTimeline(steps)(network.module) if target.reach.stamped else network.module
    with target.reach.staged(compile_module(module, schedules, target)) as program:
        ran = target.reach.run(time_steps, program, steps, network.input_shape, entry_us, timeout_s=TIMEOUT_S)
    count = len(network.segments)
    columns = tuple(tuple(ran.scale * took_us for took_us in column) for column in zip(*ran.value, strict=True))
    # Behind the segments, each branch is timed after its segment, whose second time is not wanted.
    return InPlace(columns[:count], columns[count + 1 :: 2])


def _steps(segments: int, graph: ExitGraph) -> list[Step]:
    """All segments in order, then each branch behind its segment, which runs again: a branch reads what its segment
    has just written."""
    chain = [Step(segment_name(index), index - 1 if index else None) for index in range(segments)]
    pairs = [
        (chain[option.candidate], Step(exit_name(option), segments + 2 * index))
        for index, option in enumerate(graph.options)
    ]
    return chain + [step for pair in pairs for step in pair]


def time_steps(
    place: Place, program: Program, steps: Sequence[Step], input_shape: Sequence[int], entry_us: float
) -> list[list[float]]:
    """``REPEATS`` rows of one time for each step, in microseconds; warmed up."""
    machine = place.machine(program)
    image = place.tensor(np.random.default_rng(0).random(input_shape, dtype=np.float32))
    turns = track(range(WARM_UP + REPEATS), WARM_UP + REPEATS, "measure segments")
    return [machine.pieces_us([image], steps, entry_us) for _ in turns][WARM_UP:]
