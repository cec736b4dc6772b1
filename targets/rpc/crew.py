"""The workers of a fleet: started, told, heard and ended. It knows no jobs' order and blames nobody."""

from __future__ import annotations

import enum
import selectors
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.messages import receive, send
from hapi_tvm.targets.rpc.jobs import Job
from hapi_tvm.targets.rpc.tracker import Tracker
from hapi_tvm.targets.rpc.worker import work
from hapi_tvm.targets.rpc.yardstick import Yardstick
from hapi_tvm.targets.rpc.zygote import shared_zygote

__all__ = ["Crew", "Ended", "State", "Worker"]


class State(enum.Enum):
    ASKING = "asks the tracker for a board"
    GRANTED = "was given a board, and may not open it yet"
    OPENING = "opens its board"
    IDLE = "holds a board"
    BUSY = "has a job"
    LATE = "did not answer in time: its board is taken until the session ends"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a worker that is gone said last."""


@dataclass(eq=False, slots=True)
class Worker:
    """board: None while it asks. until_s: when the fleet must look after it, on its clock; inf where it need not.

    ends_s: when the board ends the session, on the fleet's clock.
    """

    pid: int
    channel: socket.socket
    session_s: float
    state: State = State.ASKING
    board: str | None = None
    job: Job | None = None
    until_s: float = float("inf")
    ends_s: float = float("inf")
    said: str = ""


class Crew:
    """tracker, yardstick, tolerance: as ``work`` takes them."""

    def __init__(self, tracker: Tracker, yardstick: Yardstick, tolerance: float) -> None:
        self._tracker = tracker
        self._yardstick = yardstick
        self._tolerance = tolerance
        self._folder: str | None = None
        self.workers: list[Worker] = []

    def start(self, session_s: float) -> Worker:
        """A worker more. Raises TargetError where none can be started."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="hapi-fleet-")
        arguments = (work, self._tracker, self._yardstick, self._tolerance, session_s, self._folder)
        try:
            pid, channel = shared_zygote().start(*arguments)
        except (OSError, EOFError) as error:
            raise TargetError(f"no worker for a board can be started on this machine: {error}") from None
        self.workers.append(Worker(pid, channel, session_s))
        return self.workers[-1]

    def tell(self, worker: Worker, message: Any) -> bool:
        """False where the worker is gone."""
        try:
            send(worker.channel, message)
        except OSError:
            return False
        return True

    def hear(self, wait_s: float) -> Iterator[tuple[Worker, Any]]:
        """One message of each worker that has something to say; waits for the first at most ``wait_s``."""
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            heard = [key.data for key, _ in selector.select(max(wait_s, 0.0))]
        for worker in heard:
            try:
                message = receive(worker.channel)
            except (EOFError, OSError):
                message = Ended()
            yield worker, message

    def dismiss(self, worker: Worker) -> None:
        """Let it end by itself: an idle one gives its board back."""
        worker.channel.close()
        self.workers.remove(worker)

    def end(self, worker: Worker) -> None:
        """Kill it, whatever it does."""
        shared_zygote().end(worker.pid)
        self.dismiss(worker)

    def close(self) -> None:
        """End all of them. A later ``start`` begins anew."""
        for worker in tuple(self.workers):
            self.end(worker)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
