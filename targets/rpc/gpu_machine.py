"""A network on the GPU of a board, its pieces timed one call at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import tvm

from hapi_tvm.targets.rpc.board_machine import BoardMachine
from hapi_tvm.timeline import Step

__all__ = ["GpuBoardMachine"]


class GpuBoardMachine(BoardMachine):
    """A ``Machine`` whose every figure is the board's time evaluator's, which waits for the device: a stamp between two
    calls would tell when a GPU was given its work, not when it had done it. Each piece is run once before it is timed.
    """

    def kernels_us(self, inputs: Sequence[tvm.runtime.Tensor], names: Sequence[str]) -> list[float]:
        """Never called: kernels are timed in their places to choose among ways to compute a convolution, and on a GPU,
        where nothing is blocked, there is one (``tests/test_cuda_module.py`` holds that)."""
        raise NotImplementedError("kernels on a board's GPU are timed by themselves, with time_library")

    def pieces_us(self, inputs: Sequence[tvm.runtime.Tensor], steps: Sequence[Step], entry_us: float) -> list[float]:
        readers = Counter(step.reads for step in steps)
        results: dict[int | None, Any] = {}
        times_us = []
        for index, step in enumerate(steps):
            arguments = inputs if step.reads is None else (results[step.reads],)
            times_us.append(max(0.0, self._timed_us(step.function, arguments) - entry_us))
            if readers[index]:
                results[index] = self._machine.get_outputs(step.function)
            readers[step.reads] -= 1
            if not readers[step.reads]:
                results.pop(step.reads, None)
        return times_us
