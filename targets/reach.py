"""How a target's device is reached: in this process, or through others.

``ThisMachine`` is one of the two; ``rpc.boards`` has the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import tvm

from hapi_tvm.pool import with_pool
from hapi_tvm.targets.forkserver import Outcome, shared_server
from hapi_tvm.targets.forkserver_runner import runtime_environment
from hapi_tvm.targets.here import Here
from hapi_tvm.targets.machine_facts import MachineFacts, facts_here
from hapi_tvm.targets.place import Program

__all__ = ["Ran", "Reach", "ThisMachine"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a function returned. scale: times in it, multiplied by it, can be compared with those of other calls,
    which another board may have answered; 1.0 where there is one machine only."""

    value: Any
    scale: float = 1.0


class Reach(Protocol):
    """Calls functions of a ``Place``.

    remote: the device is another machine's. What is compiled for it cannot be loaded in this process, functions are
    called in other processes, so they are importable by name and their arguments and values are pickled, and
    nobody sees how far they are. stamped: pieces of a network are timed by stamps that are compiled in.
    """

    remote: bool
    stamped: bool

    def check(self) -> None:
        """Raise TargetError where there is no device to run on, before a build spends time on anything else.

        Nobody is asked: a build that is finished needs no device.
        """

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        """Write a shared library that the device's machine can load."""

    def staged(self, executable: tvm.runtime.Executable) -> AbstractContextManager[Program]:
        """What is passed to a function, in the block, for its place to load."""

    def run(self, function: Callable, *arguments: Any, timeout_s: float) -> Ran:
        """``function(place, *arguments)``, with the target's threads.

        timeout_s: where the device is remote; here nothing interrupts a call. Raises what ``function`` raises here,
        and BuildError where it did not come back from a remote device.
        """

    def attempt(self, function: Callable, calls: Sequence[tuple], timeout_s: float) -> list[Outcome]:
        """``function(place, *calls[i])`` for every i, out of this process; a crash is one outcome's error."""

    def facts(self) -> MachineFacts:
        """Of the device's machine."""


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """A ``Reach`` of a device of this machine. threads: of TVM's runtime. device: in TVM's words, such as "cuda"."""

    threads: int
    device: str = "cpu"
    remote: ClassVar[bool] = False
    stamped: ClassVar[bool] = False

    def check(self) -> None:
        pass

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        executable.export_library(str(path))

    @contextlib.contextmanager
    def staged(self, executable: tvm.runtime.Executable) -> Iterator[Program]:
        yield executable

    def run(self, function: Callable, *arguments: Any, timeout_s: float) -> Ran:
        return Ran(with_pool(self.threads, lambda: _in_this_process(self.device, function, *arguments)))

    def attempt(self, function: Callable, calls: Sequence[tuple], timeout_s: float) -> list[Outcome]:
        """In forks, two at a time: for answers, not for times."""
        return shared_server().map(
            _in_this_process,
            [(self.device, function, *call) for call in calls],
            timeout_s,
            workers=2,
            environment=runtime_environment(self.threads),
        )

    def facts(self) -> MachineFacts:
        return facts_here()


def _in_this_process(device: str, function: Callable, *arguments: Any) -> Any:
    return function(Here(tvm.device(device)), *arguments)
