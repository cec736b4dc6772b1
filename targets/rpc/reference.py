"""A kernel of known answer that shows how fast a board is, and whether it computes right."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import numpy as np
import tvm
from tvm import te

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.faults import BoardFault

__all__ = ["FLOPS", "SIZE", "Reference", "matrix_product", "plain_product", "reference_library"]

SIZE = 128
FLOPS = 2 * SIZE**3
WINDOWS = 5
WINDOW_MS = 5.0
_LANES = 16
# float32 sums of so many products of standard normals, in another order than NumPy's.
_TOLERANCE = 1e-3


def matrix_product() -> tvm.IRModule:
    """``plain_product`` of ``SIZE``, sums in vectors; for any CPU."""
    schedule = tvm.s_tir.Schedule(plain_product(SIZE))
    block = schedule.get_sblock("C")
    i, j, k = schedule.get_loops(block)
    j, vector = schedule.split(j, [None, _LANES])
    schedule.reorder(i, j, k, vector)
    schedule.vectorize(vector)
    schedule.decompose_reduction(block, k)
    return schedule.mod


def plain_product(size: int) -> tvm.IRModule:
    """``main(A, B, C)``: C = A @ B, float32 [size, size] each, not scheduled."""
    a, b = (te.placeholder((size, size), name=name) for name in "AB")
    k = te.reduce_axis((0, size), name="k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return tvm.IRModule({"main": te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")})


def reference_library(triple: str, folder: str) -> str:
    """Path in ``folder`` of the reference kernel for the least processor of a triple; compiled if it is not there.

    Raises TargetError where it is for another architecture and this machine has no linker for that.
    """
    machine = triple.partition("-")[0]
    path = os.path.join(folder, f"reference-{machine}.so")
    if os.path.exists(path):
        return path
    link = _linker(machine)
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "num-cores": 1})
    library = tvm.tirx.build(matrix_product(), target=target)
    # Under another name first: workers compile side by side.
    fresh = tempfile.mkdtemp(dir=folder)
    library.export_library(os.path.join(fresh, "fresh.so"), fcompile=link)
    os.replace(os.path.join(fresh, "fresh.so"), path)
    os.rmdir(fresh)
    return path


def _linker(machine: str) -> Callable[..., None]:
    """Links objects to a library, in the manner of ``export_library``'s ``fcompile``."""
    if machine == os.uname().machine:
        names = ("ld", "gcc", "cc", "clang")
    else:
        names = (f"{machine}-linux-gnu-ld", f"{machine}-linux-gnu-gcc")
    linker = next((name for name in names if shutil.which(name)), None)
    if linker is None:
        raise TargetError(
            f"this machine cannot link for {machine}: none of {', '.join(names)} is installed; try apt-get install "
            f"gcc-{machine.replace('_', '-')}-linux-gnu"
        )

    def link(output: str, objects: list[str], options: list[str] | None = None) -> None:
        subprocess.run([linker, "-shared", "-o", output, *objects], check=True, capture_output=True)

    return link


class Reference:
    """The kernel, loaded on a board. size: of its matrices. device: where they are to lie; None takes the board's CPU.

    Raises BoardFault when the board computes something else.
    """

    def __init__(
        self, board: Board, library: str, size: int = SIZE, device: tvm.runtime.Device | None = None
    ) -> None:
        random = np.random.default_rng(0)
        a, b = (random.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        self._expected = a @ b
        self._module = board.load(library)
        self._device = device or board.session.cpu(0)
        self._arguments = [tvm.runtime.tensor(array, self._device) for array in (a, b, np.zeros_like(a))]
        self.check()
        self._calls = max(math.ceil(WINDOW_MS * 1e3 / min(self._timed_us(calls=1))), 1)

    def check(self) -> None:
        """Compute it once and compare."""
        self._arguments[-1].copyfrom(np.zeros_like(self._expected))
        self._module["main"](*self._arguments)
        size = len(self._expected)
        worst = float(np.abs(self._arguments[-1].numpy() - self._expected).max())
        if not worst <= _TOLERANCE:
            raise BoardFault(
                f"it computes wrong numbers: a product of two {size}x{size} matrices is off by {worst:.3g}, "
                f"and up to {_TOLERANCE} is rounding",
                lasting=True,
            )

    def read_us(self) -> float:
        """One call in microseconds, checked: the fastest window, since what else runs on a board only slows."""
        return min(self.windows_us())

    def windows_us(self) -> list[float]:
        """One call in microseconds, on average over each of ``WINDOWS`` windows of ``WINDOW_MS``; checked."""
        taken_us = self._timed_us(self._calls)
        self.check()
        return taken_us

    def _timed_us(self, calls: int) -> list[float]:
        evaluator = self._module.time_evaluator("main", self._device, number=calls, repeat=WINDOWS)
        return [1e6 * seconds for seconds in evaluator(*self._arguments).results]
