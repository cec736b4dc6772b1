"""Real trackers and real servers on loopback, each a process group of its own that a test may stop or kill."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.tracker import Tracker, summary
from tests.checkout import ROOT

__all__ = ["KEY", "BoardProcess", "board", "free_port", "tracker", "until"]

KEY = "test-board"
_PATIENCE_S = 60.0

_TRACKER = """
import sys
sys.modules["torch"] = None
from tvm.rpc.tracker import PopenTrackerServerState
PopenTrackerServerState("127.0.0.1", {port}, {port} + 1, silent=True)
"""
_BOARD = """
import sys
sys.modules["torch"] = None
sys.path.insert(0, {root!r})
{prelude}
from hapi_tvm.board_server import serve
serve(("127.0.0.1", {tracker}), {key!r}, "127.0.0.1", None, lambda line: print(line, flush=True))
"""
# TVM's own, as ``python -m tvm.exec.rpc_server`` runs it, less the process around it.
_PLAIN_BOARD = """
import sys
sys.modules["torch"] = None
from tvm.rpc.server import PopenRPCServerState
server = PopenRPCServerState("127.0.0.1", 9090, 9190, tracker_addr=("127.0.0.1", {tracker}), key={key!r}, silent=True)
print("on 127.0.0.1:%d and" % server.port, flush=True)
"""


@dataclass(frozen=True)
class BoardProcess:
    """name: "host:port", as the fleet calls the board."""

    process: subprocess.Popen
    name: str

    def signal(self, number: int) -> None:
        """To the server and its sessions."""
        os.killpg(self.process.pid, number)

    def line(self) -> str:
        """The next line that it prints."""
        assert select.select([self.process.stdout], [], [], _PATIENCE_S)[0], "the board printed nothing"
        return self.process.stdout.readline()

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


def until(condition, what: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def _group(program: str, stdout: int) -> Iterator[subprocess.Popen]:
    """A process group; killed at the end of the block, whatever it is in."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def tracker(port: int | None = None) -> Iterator[Tracker]:
    """A tracker that answers; the boards' key is ``KEY``."""
    found = Tracker("127.0.0.1", free_port() if port is None else port, KEY)
    with _group(_TRACKER.format(port=found.port), subprocess.DEVNULL):
        until(lambda: _answers(found), "the tracker answers")
        yield found


def _answers(found: Tracker) -> bool:
    try:
        summary(found)
    except TargetError:
        return False
    return True


@contextlib.contextmanager
def board(
    at: Tracker, prelude: str = "", key: str = KEY, plain: bool = False, registered: bool = True
) -> Iterator[BoardProcess]:
    """A board, as ``hapi-tvm board serve`` makes it; plain: as TVM does. prelude: Python that its server runs first.

    registered: wait until the tracker knows it.
    """
    program = (_PLAIN_BOARD if plain else _BOARD).format(root=str(ROOT), prelude=prelude, tracker=at.port, key=key)
    with _group(program, subprocess.PIPE) as process:
        made = BoardProcess(process, "")
        name = made.line().split(" on ")[-1].split(" and ")[0] if not plain else made.line().split()[1]
        made = BoardProcess(process, name)
        if registered:
            until(lambda: name in summary(at).boards.get(key, ()), "the board is registered")
        yield made
