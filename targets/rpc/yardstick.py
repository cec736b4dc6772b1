"""By what a board's speed is measured, and its answers checked: a matrix product, on the device that will do the work.

A GPU's times say nothing about its host's, nor the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hapi_tvm.targets.rpc.gpu_reference import gpu_reference_library
from hapi_tvm.targets.rpc.reference import SIZE, reference_library

__all__ = ["CpuYardstick", "GpuYardstick", "Yardstick"]


class Yardstick(Protocol):
    """Frozen and pickled. device: TVM's name of the board's device that works. size: of the matrices, [size, size]."""

    device: str
    size: int

    def library(self, triple: str, folder: str) -> str:
        """Path in ``folder`` of the kernel for a board of this triple, compiled if it is not there.

        Raises TargetError where it cannot be compiled on this machine.
        """


@dataclass(frozen=True, slots=True)
class CpuYardstick:
    device: str = "cpu"
    size: int = SIZE

    def library(self, triple: str, folder: str) -> str:
        return reference_library(triple, folder)


@dataclass(frozen=True, slots=True)
class GpuYardstick:
    """arch: of the boards' GPUs. nvcc: path of the compiler. cc: of the one that links for the boards; None where
    this machine's does."""

    arch: str
    nvcc: str
    cc: str | None = None
    device: str = "cuda"
    # Large enough to take some microseconds, small enough to be sent and compared after every job.
    size: int = 256

    def library(self, triple: str, folder: str) -> str:
        return gpu_reference_library(self.arch, triple, folder, self.size, self.nvcc, self.cc)
