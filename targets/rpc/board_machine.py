"""A network on a board's CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.relax import VirtualMachine

from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.timeline import CLOCK_WORDS, TIMELINE, Step

__all__ = ["BoardMachine"]


class BoardMachine:
    """A ``Machine`` of ``OnBoard``.

    ``main`` is timed by the board's time evaluator, which runs it once before it runs it for the figure. Kernels and
    pieces are timed by the stamps that ``passes.stamp_calls`` has put between them.
    """

    def __init__(self, board: Board, library: tvm.runtime.Module) -> None:
        self._board = board
        self._machine = VirtualMachine(library, board.device)
        self._evaluator = self._machine.time_evaluator("invoke_stateful", board.device, number=1, repeat=1)

    def run_us(self, inputs: Sequence[tvm.runtime.Tensor]) -> float:
        return self._timed_us("main", inputs)

    def answer(self) -> tuple[np.ndarray, ...]:
        return tuple(tensor.numpy() for tensor in self._machine.get_outputs("main"))

    def kernels_us(self, inputs: Sequence[tvm.runtime.Tensor], names: Sequence[str]) -> list[float]:
        return self._between_stamps_us(inputs, len(names))

    def pieces_us(self, inputs: Sequence[tvm.runtime.Tensor], steps: Sequence[Step], entry_us: float) -> list[float]:
        """The first call that is stamped is of a piece that does nothing: what a call takes by itself."""
        nothing_us, *times_us = self._between_stamps_us(inputs, 1 + len(steps))
        return [max(0.0, took_us - nothing_us) for took_us in times_us]

    def _timed_us(self, function: str, inputs: Sequence[tvm.runtime.Tensor]) -> float:
        self._machine.set_input(function, *inputs)
        return 1e6 * float(self._evaluator(function).results[0])

    def _between_stamps_us(self, inputs: Sequence[tvm.runtime.Tensor], calls: int) -> list[float]:
        stamps = self._board.tensor(np.zeros((calls + 1, CLOCK_WORDS), np.int64))
        self._machine.set_input(TIMELINE, *inputs, stamps)
        self._machine.invoke_stateful(TIMELINE)
        seconds, nanoseconds = self._machine.get_outputs(TIMELINE).numpy().T
        return (1e6 * np.diff(seconds) + 1e-3 * np.diff(nanoseconds)).tolist()
