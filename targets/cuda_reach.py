"""This machine's first GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.cuda_compiler import compiler_variables
from hapi_tvm.targets.forkserver import Outcome, shared_server
from hapi_tvm.targets.here import Here
from hapi_tvm.targets.machine_facts import MachineFacts
from hapi_tvm.targets.place import Program
from hapi_tvm.targets.reach import Ran, ThisMachine

__all__ = ["ThisGpu"]

DEVICE = "cuda"
_MACHINE = ThisMachine(1, DEVICE)


@dataclass(frozen=True, slots=True)
class ThisGpu:
    """A ``Reach`` of the first GPU; where there is none, everything but ``export`` raises TargetError.

    target: its name. nvcc: its path, without which nothing is measured: source would be compiled anew in every fork.
    """

    target: str
    nvcc: str | None
    remote: ClassVar[bool] = False
    stamped: ClassVar[bool] = False

    def check(self) -> None:
        if not tvm.device(DEVICE).exist:
            raise TargetError(
                f"{self.target} has no device here: TVM finds no GPU of NVIDIA's, so it compiles and runs nothing. "
                "`nvidia-smi` shows whether the driver is there; hapi_tvm.port compiles a finished run for it"
            )
        if self.nvcc is None:
            raise TargetError(
                f"{self.target} holds source, and measuring takes machine code: `pip install 'nvidia-cuda-nvcc<14'`, "
                "and leave compiler out"
            )

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        _MACHINE.export(executable, path)

    def staged(self, executable: tvm.runtime.Executable) -> AbstractContextManager[Program]:
        self.check()
        return _MACHINE.staged(executable)

    def run(self, function: Callable, *arguments: Any, timeout_s: float) -> Ran:
        self.check()
        return _MACHINE.run(function, *arguments, timeout_s=timeout_s)

    def attempt(self, function: Callable, calls: Sequence[tuple], timeout_s: float) -> list[Outcome]:
        """In forks of a process that has never used the GPU, one at a time."""
        self.check()
        forked = [(function, *call) for call in calls]
        return shared_server().map(_on_gpu, forked, timeout_s, environment=compiler_variables(self.nvcc))

    def facts(self) -> MachineFacts:
        return _MACHINE.facts()


def _on_gpu(function: Callable, *arguments: Any) -> Any:
    return function(Here(tvm.device(DEVICE)), *arguments)
