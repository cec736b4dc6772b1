"""Where compiled code runs: in this process (``here``) or on a board (``rpc.on_board``).

What a stage runs and times is a function of a ``Place``, written once. It reaches one by ``Target.reach``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tvm

from hapi_tvm.timeline import Step

__all__ = ["Machine", "Place", "Program"]

# Compiled code: in memory, as a kernel's or as a network's, or the path of an exported library. Only a path reaches
# another process.
Program = tvm.runtime.Module | tvm.runtime.Executable | str


class Machine(Protocol):
    """A Relax module, loaded. Its functions take tensors of the place that loaded it."""

    def run_us(self, inputs: Sequence[tvm.runtime.Tensor]) -> float:
        """Microseconds of one run of ``main``, by the clock of the device's machine."""

    def answer(self) -> tuple[np.ndarray, ...]:
        """What the last run of ``main``, which returns a tuple of tensors, answered."""

    def kernels_us(self, inputs: Sequence[tvm.runtime.Tensor], names: Sequence[str]) -> list[float]:
        """Microseconds of every kernel of a plain network, in one run.

        names: of the kernels in call order, as the lowered network has them. On a board the program must have
        gone through ``passes.kernel_timeline``.
        """

    def pieces_us(self, inputs: Sequence[tvm.runtime.Tensor], steps: Sequence[Step], entry_us: float) -> list[float]:
        """Microseconds of every step in its turn, in one run of all.

        entry_us: what it takes to call a function from Python, which is taken off. On a board the program must
        have gone through ``passes.piece_timeline`` with the same steps, nobody calls from Python, and what a call
        takes is measured in the same run.
        """


class Place(Protocol):
    """A device, and how to use it from this process. device: as TVM addresses it."""

    device: tvm.runtime.Device

    def tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        """A copy of ``array`` on the device."""

    def library(self, program: Program) -> tvm.runtime.Module:
        """A library of kernels, loaded."""

    def machine(self, program: Program) -> Machine:
        """A Relax module, loaded."""
