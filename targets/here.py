"""Compiled code in this process."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.relax import VirtualMachine

from hapi_tvm.fresh_name import fresh_name
from hapi_tvm.targets.place import Program
from hapi_tvm.timeline import Step

__all__ = ["Here"]


class Here:
    """A ``Place``: the caller's process."""

    def __init__(self, device: tvm.runtime.Device | None = None) -> None:
        self.device = device or tvm.cpu(0)

    def tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        return tvm.runtime.tensor(array, device=self.device)

    def library(self, program: Program) -> tvm.runtime.Module:
        return tvm.runtime.load_module(program) if isinstance(program, str) else program

    def machine(self, program: Program) -> LocalMachine:
        if not isinstance(program, str):
            return LocalMachine(program, self.device)
        with fresh_name(program) as link:
            return LocalMachine(tvm_ffi.load_module(str(link)), self.device)


class LocalMachine:
    """A ``Machine`` of ``Here``, timed by ``time.perf_counter`` around each call from Python.

    A call returns when a CPU has done its work, and before another device has: the clock is read when that is done.
    """

    def __init__(self, module: tvm.runtime.Module | tvm.runtime.Executable, device: tvm.runtime.Device) -> None:
        self._module = module
        self._device = device
        self._wait: Callable[[], None] | None = None if device.type == "cpu" else device.sync
        self._machine = VirtualMachine(module, device)
        self._answer: Any = ()
        self._began_s = 0.0
        self._wanted: frozenset[str] = frozenset()
        self._calls: list[tuple[str, float]] = []
        self._functions: dict[str, Any] = {}

    def run_us(self, inputs: Sequence[tvm.runtime.Tensor]) -> float:
        self._answer, took_us = self._timed(self._main, inputs)
        return took_us

    def answer(self) -> tuple[np.ndarray, ...]:
        return tuple(tensor.numpy() for tensor in self._answer)

    def kernels_us(self, inputs: Sequence[tvm.runtime.Tensor], names: Sequence[str]) -> list[float]:
        """Watching adds one to three microseconds to each kernel."""
        self._calls.clear()
        self._wanted = frozenset(names)
        self._watched_main(*inputs)
        called = [name for name, _ in self._calls]
        assert called == list(names), "the compiled network calls its kernels in another order than the lowered"
        return [took_us for _, took_us in self._calls]

    def pieces_us(self, inputs: Sequence[tvm.runtime.Tensor], steps: Sequence[Step], entry_us: float) -> list[float]:
        readers = Counter(step.reads for step in steps)
        results: dict[int | None, Any] = {}
        times_us = []
        for index, step in enumerate(steps):
            function = self._function(step.function)
            arguments = inputs if step.reads is None else (results[step.reads],)
            result, took_us = self._timed(function, arguments)
            times_us.append(max(0.0, took_us - entry_us))
            # What nobody reads any more gives its memory back, as it does in the compiled network.
            if readers[index]:
                results[index] = result
            readers[step.reads] -= 1
            if not readers[step.reads]:
                results.pop(step.reads, None)
        return times_us

    def _timed(self, function: Callable, arguments: Sequence[Any]) -> tuple[Any, float]:
        """What ``function`` returns, and the microseconds it took."""
        began_s = time.perf_counter()
        result = function(*arguments)
        if self._wait is not None:
            self._wait()
        return result, 1e6 * (time.perf_counter() - began_s)

    @functools.cached_property
    def _main(self):
        return self._machine["main"]

    @functools.cached_property
    def _watched_main(self):
        """Of a machine of its own, since a watch cannot be taken off."""
        watched = VirtualMachine(self._module, self._device)
        watched.set_instrument(self._watch)
        return watched["main"]

    def _watch(self, _function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
        if before:
            self._began_s = time.perf_counter()
        elif name in self._wanted:
            if self._wait is not None:
                self._wait()
            self._calls.append((name, 1e6 * (time.perf_counter() - self._began_s)))
        return 0  # go on

    def _function(self, name: str):
        if name not in self._functions:
            self._functions[name] = self._machine[name]
        return self._functions[name]
