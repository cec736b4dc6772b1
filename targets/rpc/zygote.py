"""A process with TVM loaded that forks a worker in milliseconds, each with a socket to the starter.

The starter itself must not be forked, since it has threads; and a worker must be a process, since a call over TVM's
RPC has no time-out and can only be ended with it. POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from hapi_tvm.targets.messages import receive, send
from hapi_tvm.targets.preloaded import READY, PreloadedProcess

__all__ = ["Zygote", "shared_zygote"]

_PRELOAD = ("hapi_tvm.targets.rpc.worker",)
_PR_SET_PDEATHSIG = 1


class Zygote:
    """The starter's side. Started with the first worker, and again should it have died."""

    def __init__(self) -> None:
        self._process = PreloadedProcess(serve)
        self._one_order = threading.Lock()

    def start(self, function: Callable, *arguments: Any) -> tuple[int, socket.socket]:
        """Run ``function(channel, *arguments)`` in a fork; returns its process id and our end of ``channel``.

        function: importable by name. The fork ends when it returns. Raises OSError or EOFError where the zygote
        dies meanwhile.
        """
        with self._one_order:
            control = self._process.control()
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    send(control, (function, arguments))
                    socket.send_fds(control, [b"\0"], [theirs.fileno()])
                return receive(control), ours
            except BaseException:
                # Interrupted half-way: the next order would get this one's answer.
                ours.close()
                self._process.close()
                raise

    def end(self, pid: int) -> None:
        """Kill a worker, if it still runs."""
        with self._one_order, contextlib.suppress(OSError):
            if self._process.runs:
                send(self._process.control(), pid)

    def close(self) -> None:
        """End all workers and the zygote."""
        self._process.close()


@functools.cache
def shared_zygote() -> Zygote:
    """The one zygote of this process; ended with it."""
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


def serve(control_fd: int) -> None:
    """The zygote's side: fork and kill as told, until the starter is gone; then nothing that it forked is left."""
    control = socket.socket(fileno=control_fd)
    for module in _PRELOAD:
        importlib.import_module(module)
    send(control, READY)
    children: set[int] = set()
    try:
        while True:
            order = receive(control)
            children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG) != (0, 0)}
            if isinstance(order, tuple):
                pid = _fork(control, *order)
                children.add(pid)
                send(control, pid)
            elif order in children:
                os.kill(order, signal.SIGKILL)
    except (EOFError, OSError):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, function: Callable, arguments: tuple) -> int:
    _, (channel_fd,), _, _ = socket.recv_fds(control, 1, 1)
    pid = os.fork()
    if pid == 0:
        control.close()
        _end_with_parent()
        _run_and_exit(function, socket.socket(fileno=channel_fd), arguments)
    os.close(channel_fd)
    return pid


def _end_with_parent() -> None:
    """Also where the zygote is killed: Linux then kills this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run_and_exit(function: Callable, channel: socket.socket, arguments: tuple) -> None:
    # Nothing may unwind into the zygote's loop. The starter learns of an error by the end of the channel.
    try:
        function(channel, *arguments)
    finally:
        os._exit(0)
