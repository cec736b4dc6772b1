"""Compiled code on a board, timed there: the network is in no figure."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import tvm
from tvm.relax import VirtualMachine

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.place import Program
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.export import export
from hapi_tvm.timeline import CLOCK_WORDS, TIMELINE, Step

__all__ = ["OnBoard"]

# ``threading::ThreadGroup::AffinityMode::kBig`` of TVM 0.27, as ``runtime.config_threadpool`` takes it.
FASTEST_CORES = 1


class OnBoard:
    """A ``Place``: the session of one board.

    threads: of TVM's runtime there. cc: the cross compiler that links for it; None where this machine's does.
    Raises TargetError where the board has no such number of threads.
    """

    def __init__(self, board: Board, threads: int, cc: str | None) -> None:
        self.device = board.device
        self._board = board
        self._cc = cc
        if threads > 1:
            _use_threads(board, threads)

    def tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        return self._board.tensor(array)

    def library(self, program: Program) -> tvm.runtime.Module:
        with self._exported(program) as path:
            return self._board.load(path)

    def machine(self, program: Program) -> BoardMachine:
        return BoardMachine(self._board, self.library(program))

    @contextlib.contextmanager
    def _exported(self, program: Program) -> Iterator[str]:
        if isinstance(program, str):
            yield program
            return
        with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as folder:
            path = os.path.join(folder, "program.so")
            export(program, path, self._cc)
            yield path


class BoardMachine:
    """A ``Machine`` of ``OnBoard``.

    ``main`` is timed by the board's time evaluator, which runs it once before it runs it for the figure. Kernels and
    pieces are timed by the stamps that ``passes.stamp_calls`` has put between them.
    """

    def __init__(self, board: Board, library: tvm.runtime.Module) -> None:
        self._board = board
        self._machine = VirtualMachine(library, board.device)
        self._time_main = self._machine.time_evaluator("invoke_stateful", board.device, number=1, repeat=1)

    def run_us(self, inputs: Sequence[tvm.runtime.Tensor]) -> float:
        self._machine.set_input("main", *inputs)
        return 1e6 * float(self._time_main("main").results[0])

    def answer(self) -> tuple[np.ndarray, ...]:
        return tuple(tensor.numpy() for tensor in self._machine.get_outputs("main"))

    def kernels_us(self, inputs: Sequence[tvm.runtime.Tensor], names: Sequence[str]) -> list[float]:
        return self._between_stamps_us(inputs, len(names))

    def pieces_us(self, inputs: Sequence[tvm.runtime.Tensor], steps: Sequence[Step], entry_us: float) -> list[float]:
        """The first call that is stamped is of a piece that does nothing: what a call takes by itself."""
        nothing_us, *times_us = self._between_stamps_us(inputs, 1 + len(steps))
        return [max(0.0, took_us - nothing_us) for took_us in times_us]

    def _between_stamps_us(self, inputs: Sequence[tvm.runtime.Tensor], calls: int) -> list[float]:
        stamps = self._board.tensor(np.zeros((calls + 1, CLOCK_WORDS), np.int64))
        self._machine.set_input(TIMELINE, *inputs, stamps)
        self._machine.invoke_stateful(TIMELINE)
        seconds, nanoseconds = self._machine.get_outputs(TIMELINE).numpy().T
        return (1e6 * np.diff(seconds) + 1e-3 * np.diff(nanoseconds)).tolist()


def _use_threads(board: Board, threads: int) -> None:
    board.session.get_function("runtime.config_threadpool")(FASTEST_CORES, threads)
    found = int(board.session.get_function("runtime.NumThreads")())
    if found != threads:
        raise TargetError(
            f"threads={threads}, but board {board.name} runs kernels on {found}: give threads={found}, or start its "
            f"server with TVM_NUM_THREADS={threads}"
        )
