"""Real trackers and real servers on loopback, each a process group of its own that a test may stop or kill.

They are forks of one process that has TVM loaded, which makes them in milliseconds; ``tests/test_cli_board.py``
starts servers as users do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.messages import receive, send
from hapi_tvm.targets.rpc.tracker import Tracker, summary
from hapi_tvm.targets.rpc.zygote import shared_zygote

__all__ = ["KEY", "OWN_KERNEL", "WRONG_NUMBERS", "BoardProcess", "board", "free_port", "gone", "tracker", "until"]

KEY = "test-board"
PATIENCE_S = 60.0

# A server that stores a library of its own, whatever it is sent: its kernel calls ``test.product``.
OWN_KERNEL = """
import os, pathlib, tempfile, time
import numpy as np
import tvm
from tvm import te
from hapi_tvm.targets.rpc.reference import SIZE

a, b = (te.placeholder((SIZE, SIZE), name=name) for name in "AB")
c = te.extern((SIZE, SIZE), [a, b], lambda i, o: tvm.tirx.call_packed("test.product", *i, *o), dtype="float32")
module = tvm.tirx.build(te.create_prim_func([a, b, c]), target=tvm.target.Target({"kind": "llvm"}))
library = os.path.join(tempfile.mkdtemp(), "own.so")
module.export_library(library)

@tvm.register_global_func("tvm.rpc.server.upload", override=True)
def upload(name, _blob):
    place = tvm.get_global_func("tvm.rpc.server.workpath")(name)
    pathlib.Path(place).write_bytes(pathlib.Path(library).read_bytes())
"""
WRONG_NUMBERS = OWN_KERNEL + """
@tvm.register_global_func("test.product")
def product(a, b, c):
    c.copyfrom(a.numpy() * b.numpy())
"""


@dataclass(frozen=True)
class BoardProcess:
    """name: "host:port", as the fleet calls the board."""

    pid: int
    channel: socket.socket
    name: str

    def signal(self, number: int) -> None:
        """To the server and its sessions."""
        os.killpg(self.pid, number)

    def line(self) -> str:
        """The next line that the server says."""
        return _line(self.channel)

    @contextlib.contextmanager
    def slowed(self, stopped_ms: float, running_ms: float) -> Iterator[None]:
        """In the block, it is stopped and continued in turns."""
        over = threading.Event()

        def alternate() -> None:
            while not over.is_set():
                self.signal(signal.SIGSTOP)
                time.sleep(stopped_ms / 1e3)
                self.signal(signal.SIGCONT)
                time.sleep(running_ms / 1e3)

        thread = threading.Thread(target=alternate)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def tracker(port: int | None = None) -> Iterator[Tracker]:
    """A tracker that answers; the boards' key is ``KEY``."""
    found = Tracker("127.0.0.1", free_port() if port is None else port, KEY)
    with _group(_track, found.port):
        until(lambda: _answers(found), "the tracker answers")
        yield found


@contextlib.contextmanager
def board(at: Tracker, prelude: str = "", key: str = KEY, plain: bool = False) -> Iterator[BoardProcess]:
    """A board that is registered, as ``hapi-tvm board serve`` makes it; plain: as TVM's own server does.

    prelude: Python that its process runs first.
    """
    with _group(_serve_plain if plain else _serve, prelude, at.port, key) as (pid, channel):
        name = _line(channel).split(" on ")[1].split(" ")[0]
        until(lambda: name in summary(at).boards.get(key, ()), "the board is registered")
        yield BoardProcess(pid, channel, name)


@contextlib.contextmanager
def _group(function: Callable, *arguments: object) -> Iterator[tuple[int, socket.socket]]:
    """A process group that runs ``function(channel, *arguments)``; killed at the end of the block, stopped or not."""
    pid, channel = shared_zygote().start(_in_a_group, function, arguments)
    process = psutil.Process(pid)
    assert _line(channel) == "grouped"
    try:
        yield pid, channel
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        until(lambda: gone(process), "the process is gone")
        channel.close()


def _in_a_group(channel: socket.socket, function: Callable, arguments: tuple) -> None:
    os.setsid()
    send(channel, "grouped")
    function(channel, *arguments)


def _track(_channel: socket.socket, port: int) -> None:
    from tvm.rpc.tracker import PopenTrackerServerState

    PopenTrackerServerState("127.0.0.1", port, port + 1, silent=True)
    threading.Event().wait()


def _serve(channel: socket.socket, prelude: str, port: int, key: str) -> None:
    from hapi_tvm.board_server import serve

    exec(prelude, {})
    serve(("127.0.0.1", port), key, "127.0.0.1", None, lambda line: send(channel, line))


def _serve_plain(channel: socket.socket, prelude: str, port: int, key: str) -> None:
    """TVM's own, as ``python -m tvm.exec.rpc_server`` runs it, less the process around it."""
    from tvm.rpc.server import PopenRPCServerState

    exec(prelude, {})
    server = PopenRPCServerState("127.0.0.1", 9090, 9190, tracker_addr=("127.0.0.1", port), key=key, silent=True)
    send(channel, f"is on 127.0.0.1:{server.port} ")
    threading.Event().wait()


def _line(channel: socket.socket) -> str:
    assert select.select([channel], [], [], PATIENCE_S)[0], "the process said nothing"
    return receive(channel)


def _answers(found: Tracker) -> bool:
    try:
        summary(found)
    except TargetError:
        return False
    return True
