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
import logging
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hapi_tvm.errors import BuildError

__all__ = ["ForkServer", "Outcome", "shared_server"]

logger = logging.getLogger(__name__)

_BOOT = """
import sys
sys.path[:] = {path!r}
from hapi_tvm import tvm_compat
tvm_compat.skip_torch()
from hapi_tvm.targets import forkserver
forkserver.serve({control})
"""
_PRELOAD = ("hapi_tvm.targets.forkserver_builder", "hapi_tvm.targets.forkserver_runner")
# OpenBLAS starts its threads at import; a fork of a process with threads may dead-lock.
_SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_START_TIMEOUT_S = 120.0
_LENGTH = struct.Struct("!Q")


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


def _send(connection: socket.socket, message: Any) -> None:
    data = pickle.dumps(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive_exactly(connection: socket.socket, size_bytes: int) -> bytes:
    """Raises EOFError when the other side is gone."""
    chunks = bytearray()
    while len(chunks) < size_bytes:
        chunk = connection.recv(size_bytes - len(chunks))
        if not chunk:
            raise EOFError
        chunks += chunk
    return bytes(chunks)


def _receive(connection: socket.socket) -> Any:
    (size_bytes,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    return pickle.loads(_receive_exactly(connection, size_bytes))


class ForkServer:
    """The caller's side: starts the server on first use, and again should it have died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

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
        control = self._connected()
        waiting = iter(jobs)
        try:
            for job in itertools.islice(waiting, workers):
                _send(control, job)
            for _ in jobs:
                index, outcome = _receive(control)
                outcomes[index] = outcome
                following = next(waiting, None)
                if following is not None:
                    _send(control, following)
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

    def _connected(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None:
            return self._control
        self.close()
        ours, theirs = socket.socketpair()
        path = [os.path.abspath(entry) for entry in sys.path]
        with theirs, tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT.format(path=path, control=theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **_SERVER_ENVIRONMENT},
                start_new_session=True,
            )
            theirs.close()
            self._control = ours
            self._await_ready(stderr)
        return ours

    def _await_ready(self, stderr) -> None:
        self._control.settimeout(_START_TIMEOUT_S)
        try:
            _receive(self._control)
        except (EOFError, OSError) as error:
            self.close()
            stderr.seek(0)
            tail = stderr.read().decode(errors="replace").strip()[-2000:]
            raise BuildError(f"the compile workers did not start: {tail or error}") from None
        self._control.settimeout(None)

    def close(self) -> None:
        """End the server and its forks. A later ``map`` starts a new one."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None


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
    _send(control, "ready")
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    running: dict[int, _Running] = {}
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    pipe_fd, job = _fork(control, _receive(control), list(running))
                    running[pipe_fd] = job
                    selector.register(pipe_fd, selectors.EVENT_READ)
                elif chunk := os.read(key.fd, 1 << 16):
                    running[key.fd].output += chunk
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    job = running.pop(key.fd)
                    _send(control, (job.index, _outcome(job)))
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
