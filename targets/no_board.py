"""A device that is nowhere: what is compiled for it can be exported, and nothing can be run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import tvm

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.forkserver import Outcome
from hapi_tvm.targets.machine_facts import MachineFacts
from hapi_tvm.targets.place import Program
from hapi_tvm.targets.reach import Ran
from hapi_tvm.targets.rpc.export import export

__all__ = ["NoBoard"]

EMULATED = ". Where there is none, `python scripts/emulated_board.py setup` makes an emulated one"


@dataclass(frozen=True, slots=True)
class NoBoard:
    """A ``Reach`` that only exports. target: its name. cc: the cross compiler that links. advice: for who has
    no board. Others raise TargetError."""

    target: str
    cc: str
    advice: str = EMULATED
    remote: ClassVar[bool] = True
    stamped: ClassVar[bool] = True

    def check(self) -> NoReturn:
        raise TargetError(
            f"{self.target} has no board, so it compiles, and nothing can be run or measured: give tracker='host:port' "
            f"and key=... of one{self.advice}"
        )

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        export(executable, path, self.cc)

    def staged(self, executable: tvm.runtime.Executable) -> AbstractContextManager[Program]:
        self.check()

    def run(self, function: Callable, *arguments: Any, timeout_s: float) -> Ran:
        self.check()

    def attempt(self, function: Callable, calls: Sequence[tuple], timeout_s: float) -> list[Outcome]:
        self.check()

    def facts(self) -> MachineFacts:
        self.check()
