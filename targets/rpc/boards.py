"""The boards behind one key of a tracker, as a target reaches them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm

from hapi_tvm.errors import BuildError
from hapi_tvm.targets.machine_facts import MachineFacts
from hapi_tvm.targets.place import Program
from hapi_tvm.targets.reach import Ran
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.export import export
from hapi_tvm.targets.rpc.fleet import BoardOutcome, Fleet, shared_fleet
from hapi_tvm.targets.rpc.on_board import OnBoard
from hapi_tvm.targets.rpc.processor import machine_facts_of
from hapi_tvm.targets.rpc.tracker import Tracker
from hapi_tvm.targets.rpc.yardstick import CpuYardstick, Yardstick

__all__ = ["Boards"]


@dataclass(frozen=True, slots=True)
class Boards:
    """A ``Reach``: whichever board behind the tracker's key is free.

    threads: of TVM's runtime on a board. cc: the cross compiler that links for them; None where this machine's does.
    yardstick: names their device, and tells their speed.
    """

    tracker: Tracker
    threads: int
    cc: str | None = None
    yardstick: Yardstick = CpuYardstick()
    remote: ClassVar[bool] = True

    @property
    def stamped(self) -> bool:
        return self.yardstick.device == "cpu"

    @property
    def fleet(self) -> Fleet:
        return shared_fleet(self.tracker, self.yardstick)

    def check(self) -> None:
        pass

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        export(executable, path, self.cc)

    @contextlib.contextmanager
    def staged(self, executable: tvm.runtime.Executable) -> Iterator[Program]:
        with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as folder:
            path = os.path.join(folder, "program.so")
            self.export(executable, path)
            yield path

    def run(self, function: Callable, *arguments: Any, timeout_s: float) -> Ran:
        (outcome,) = self.attempt(function, [arguments], timeout_s)
        if outcome.error is not None:
            key, address = self.tracker.key, self.tracker.address
            raise BuildError(
                f"{function.__name__} did not come back from a board of key {key!r} at {address}: {outcome.error}. "
                f"Look at it with `hapi-tvm board check {key} --tracker {address}`"
            )
        return Ran(outcome.value, outcome.scale)

    def attempt(self, function: Callable, calls: Sequence[tuple], timeout_s: float) -> list[BoardOutcome]:
        return self.fleet.map(
            _on_board, [(self.threads, self.cc, function, *call) for call in calls], timeout_s
        )

    def facts(self) -> MachineFacts:
        return machine_facts_of(self.tracker, self.fleet)


def _on_board(board: Board, threads: int, cc: str | None, function: Callable, *arguments: Any) -> Any:
    return function(OnBoard(board, threads, cc), *arguments)
