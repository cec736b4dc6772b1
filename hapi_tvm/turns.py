"""Plain networks run in turns: each kernel timed in its place, or the whole.

A Winograd kernel reads more bytes of weights than the direct one. Called in a loop it finds them in the
nearest cache; in its place, after all other kernels, it does not. So algorithms are compared in place.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from hapi_tvm.compiling import compile_module
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.kernel_timeline import KernelTimeline
from hapi_tvm.passes.pipeline import assemble
from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Machine, Place, Program

__all__ = ["Whole", "in_turns", "kernels_in_turns", "wholes_in_turns"]

Clock = Callable[[], float]

# A turn warms up with one run, since the networks push each other out of the caches.
RUNS = 3
TURNS = 12
MIN_TURNS = 4
BUDGET_S = 4.0
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Whole:
    """A plain network as a whole. probabilities: [classes], of one random image, the same for all networks."""

    median_us: float
    probabilities: np.ndarray


def kernels_in_turns(
    networks: Sequence[LoweredNetwork], schedules: Mapping[str, Scheduled], target: Target
) -> list[np.ndarray]:
    """For each network, the median microseconds of its backbone's kernels, in call order and in their places."""
    modules = [_plain(network, target) for network in networks]
    if target.reach.stamped:
        modules = [KernelTimeline()(module) for module in modules]
    with _staged(modules, schedules, target) as programs:
        ran = target.reach.run(
            time_kernels,
            programs,
            [network.backbone_names for network in networks],
            networks[0].input_shape,
            timeout_s=TIMEOUT_S,
        )
    return [ran.scale * medians_us for medians_us in ran.value]


def wholes_in_turns(
    networks: Sequence[LoweredNetwork], schedules: Mapping[str, Scheduled], target: Target
) -> list[Whole]:
    """Each network without its exits: how long it takes, and what it answers."""
    modules = [_plain(network, target) for network in networks]
    with _staged(modules, schedules, target) as programs:
        ran = target.reach.run(time_wholes, programs, networks[0].input_shape, timeout_s=TIMEOUT_S)
    return [replace(whole, median_us=ran.scale * whole.median_us) for whole in ran.value]


def time_kernels(
    place: Place, programs: Sequence[Program], names: Sequence[Sequence[str]], input_shape: Sequence[int]
) -> list[np.ndarray]:
    image = _image(place, input_shape)
    machines = [place.machine(program) for program in programs]
    return in_turns(
        [
            functools.partial(machine.kernels_us, image, called)
            for machine, called in zip(machines, names, strict=True)
        ]
    )


def time_wholes(place: Place, programs: Sequence[Program], input_shape: Sequence[int]) -> list[Whole]:
    image = _image(place, input_shape)
    machines = [place.machine(program) for program in programs]
    medians_us = in_turns([functools.partial(machine.run_us, image) for machine in machines])
    return [
        Whole(float(median_us), _probabilities(machine))
        for machine, median_us in zip(machines, medians_us, strict=True)
    ]


def in_turns(samplers: Sequence[Callable[[], Any]], clock: Clock = time.perf_counter) -> list[np.ndarray]:
    """The median of what each sampler returns, a number or a list of them; the samplers take turns.

    ``RUNS`` samples a turn and up to ``TURNS`` turns; as few as ``MIN_TURNS`` where they take ``BUDGET_S``.
    """
    samples: list[list[Any]] = [[] for _ in samplers]
    deadline_s = clock() + BUDGET_S
    for turn in range(TURNS):
        if turn >= MIN_TURNS and clock() > deadline_s:
            break
        for sampler, taken in zip(samplers, samples, strict=True):
            sampler()
            taken += [sampler() for _ in range(RUNS)]
    return [np.median(np.array(taken, dtype=float), axis=0) for taken in samples]


def _plain(network: LoweredNetwork, target: Target) -> tvm.IRModule:
    return assemble(network.module, (), "{}", target.tvm_target)


@contextlib.contextmanager
def _staged(
    modules: Sequence[tvm.IRModule], schedules: Mapping[str, Scheduled], target: Target
) -> Iterator[list[Program]]:
    with contextlib.ExitStack() as staged:
        yield [
            staged.enter_context(target.reach.staged(compile_module(module, schedules, target))) for module in modules
        ]


def _image(place: Place, shape: Sequence[int]) -> list[tvm.runtime.Tensor]:
    return [place.tensor(np.random.default_rng(0).random(shape, dtype=np.float32))]


def _probabilities(machine: Machine) -> np.ndarray:
    return machine.answer()[0][0]
