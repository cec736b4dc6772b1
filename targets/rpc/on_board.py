"""Compiled code on a board, timed there: the network is in no figure."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import tvm

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.place import Program
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.board_machine import BoardMachine
from hapi_tvm.targets.rpc.export import export
from hapi_tvm.targets.rpc.gpu_machine import GpuBoardMachine

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
        kind = BoardMachine if self._board.on_cpu else GpuBoardMachine
        return kind(self._board, self.library(program))

    @contextlib.contextmanager
    def _exported(self, program: Program) -> Iterator[str]:
        if isinstance(program, str):
            yield program
            return
        with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as folder:
            path = os.path.join(folder, "program.so")
            export(program, path, self._cc)
            yield path


def _use_threads(board: Board, threads: int) -> None:
    board.session.get_function("runtime.config_threadpool")(FASTEST_CORES, threads)
    found = int(board.session.get_function("runtime.NumThreads")())
    if found != threads:
        raise TargetError(
            f"threads={threads}, but board {board.name} runs kernels on {found}: give threads={found}, or start its "
            f"server with TVM_NUM_THREADS={threads}"
        )
