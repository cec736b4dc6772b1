"""Run functions in forks of one process that has TVM loaded: start-up is paid once, isolation is kept.

A crash, an endless loop or a leak in a job costs that job. Not ``multiprocessing``: its workers import
the caller's ``__main__`` again, which re-runs a script that has no main guard, and costs seconds a job.
POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import itertools
import os
import pickle
import selectors
import signal
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hapi_tvm.targets.messages import receive, send
from hapi_tvm.targets.preloaded import READY, PreloadedProcess

__all__ = ["ForkServer", "Outcome", "shared_server"]

_PRELOAD = ("hapi_tvm.targets.forkserver_builder", "hapi_tvm.targets.forkserver_runner")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: ``error`` is None exactly when it returned ``value``."""

    value: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """call: pickled (function, arguments), unpickled in the fork only."""

    index: int
    timeout_s: float
    environment: Mapping[str, str]
    call: bytes


class ForkServer:
    """The caller's side: starts the server on first use, and again should it have died."""

    def __init__(self) -> None:
        self._process = PreloadedProcess(serve)

    def map(
        self,
        function: Callable,
        arguments: Sequence[tuple],
        timeout_s: float,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Call ``function(*arguments[i])`` for every i, each in a fork; outcomes in the order of i.

        function: importable by name. Its value is pickled back and should be small (paths, figures).
        timeout_s: for each call; at its end the kernel of the operating system ends the fork.
        on_outcome: called in order of completion, in the caller's thread.
        """
        jobs = [
            _Job(index, timeout_s, dict(environment or {}), pickle.dumps((function, call)))
            for index, call in enumerate(arguments)
        ]
        outcomes: list[Outcome | None] = [None] * len(jobs)
        if not jobs:
            return []
        control = self._process.control()
        waiting = iter(jobs)
        try:
            for job in itertools.islice(waiting, workers):
                send(control, job)
            for _ in jobs:
                index, outcome = receive(control)
                outcomes[index] = outcome
                following = next(waiting, None)
                if following is not None:
                    send(control, following)
                if on_outcome is not None:
                    on_outcome(index, outcome)
        except (EOFError, OSError):
            self.close()
            lost = Outcome(error="the fork server died; it starts again with the next job")
            outcomes = [outcome or lost for outcome in outcomes]
        except BaseException:
            self.close()
            raise
        return outcomes

    def close(self) -> None:
        """End the server and its forks. A later ``map`` starts a new one."""
        self._process.close()


@functools.cache
def shared_server() -> ForkServer:
    """The one server of this process; ended with it."""
    server = ForkServer()
    atexit.register(server.close)
    return server


@dataclass(slots=True)
class _Running:
    index: int
    pid: int
    output: bytearray


def serve(control_fd: int) -> None:
    """The server's side: fork for each job, pass on what the fork wrote, until the caller is gone."""
    control = socket.socket(fileno=control_fd)
    for module in _PRELOAD:
        importlib.import_module(module)
    send(control, READY)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    running: dict[int, _Running] = {}
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    pipe_fd, job = _fork(control, receive(control), list(running))
                    running[pipe_fd] = job
                    selector.register(pipe_fd, selectors.EVENT_READ)
                elif chunk := os.read(key.fd, 1 << 16):
                    running[key.fd].output += chunk
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    job = running.pop(key.fd)
                    send(control, (job.index, _outcome(job)))
    except (EOFError, OSError):
        for job in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGKILL)


def _fork(control: socket.socket, job: _Job, other_pipes: list[int]) -> tuple[int, _Running]:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in (control.fileno(), read_fd, *other_pipes):
            os.close(fd)
        _run_and_exit(job, write_fd)
    os.close(write_fd)
    return read_fd, _Running(job.index, pid, bytearray())


def _run_and_exit(job: _Job, write_fd: int) -> None:
    # The default action of SIGALRM ends a process also where it never returns to Python.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job.timeout_s)
    os.environ.update(job.environment)
    try:
        function, arguments = pickle.loads(job.call)
        outcome = Outcome(value=function(*arguments))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = Outcome(error=f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})")
    with os.fdopen(write_fd, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


def _outcome(job: _Running) -> Outcome:
    _, status = os.waitpid(job.pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = "timed out" if number == signal.SIGALRM else f"died of {signal.Signals(number).name}"
        return Outcome(error=reason)
    try:
        return pickle.loads(bytes(job.output))
    except (pickle.UnpicklingError, EOFError):
        return Outcome(error=f"ended with status {os.waitstatus_to_exitcode(status)} and no result")
