"""Plain networks run in turns: each kernel timed in its place, or the whole.

A Winograd kernel reads more bytes of weights than the direct one. Called in a loop it finds them in the
nearest cache; in its place, after all other kernels, it does not. So algorithms are compared in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.relax import VirtualMachine

from hapi_tvm.algorithms import backbone_chain
from hapi_tvm.compiling import compile_design
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.kernels import kernel_key
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.cut_segments import segment_name
from hapi_tvm.targets import Target

__all__ = ["PlainNetwork", "in_turns"]

Clock = Callable[[], float]

# A turn warms up with one run, since the networks push each other out of the caches.
RUNS = 3
TURNS = 12
MIN_TURNS = 4
BUDGET_S = 4.0


class PlainNetwork:
    """A lowered network without its exits, compiled; runs on one random image."""

    def __init__(
        self,
        network: LoweredNetwork,
        schedules: Mapping[str, Scheduled],
        target: Target,
        clock: Clock = time.perf_counter,
    ):
        compiled = compile_design(network.module, (), {}, schedules, target)
        self._chain = backbone_chain(network)
        self._key_of = {
            var.name_hint: kernel_key(function)
            for var, function in network.module.functions_items()
            if isinstance(function, tvm.tirx.PrimFunc)
        }
        self._clock = clock
        shape = [int(extent) for extent in network.module[segment_name(0)].params[0].ty.shape]
        self._image = tvm.runtime.tensor(np.random.default_rng(0).random(shape, dtype=np.float32))
        self._main = VirtualMachine(compiled, target.device())["main"]
        watched = VirtualMachine(compiled, target.device())
        watched.set_instrument(self._watch)
        self._watched_main = watched["main"]
        self._began_s = 0.0
        self._calls: list[tuple[str, float]] = []

    def probabilities(self) -> np.ndarray:
        """[classes], of the image."""
        return self._main(self._image)[0].numpy()[0]

    def whole_us(self) -> float:
        """One run."""
        began_s = self._clock()
        self._main(self._image)
        return 1e6 * (self._clock() - began_s)

    def kernels_us(self) -> list[float]:
        """One run, kernel by kernel in call order. Watching adds one to three microseconds to each."""
        self._calls.clear()
        self._watched_main(self._image)
        keys, times_us = zip(*self._calls, strict=True)
        assert list(keys) == self._chain, "the compiled network calls its kernels in another order than the lowered"
        return list(times_us)

    def _watch(self, _function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
        if before:
            self._began_s = self._clock()
        elif name in self._key_of:
            self._calls.append((self._key_of[name], 1e6 * (self._clock() - self._began_s)))
        return 0  # go on


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
