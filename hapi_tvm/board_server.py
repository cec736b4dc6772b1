"""The server of a board: TVM's own RPC server, kept up, and ended with all that it started.

TVM 0.27's ``python -m tvm.exec.rpc_server`` stays up and answers nothing once the process of a session has crashed,
as a candidate kernel may make it. Here the server then starts again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import tvm
from tvm.rpc.server import PopenRPCServerState
from tvm.support.utils import TempDirectory

from hapi_tvm.errors import TargetError

__all__ = ["PORTS", "is_loopback", "serve"]

PORTS = range(9090, 9190)
"""Where a server looks for a free port, unless it is given one; a tracker's default lies right behind."""

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.5
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
# A server that was up for so long does not fail by itself.
_LONG_S = 10.0
_REMOVALS = 5
_FACTS_FUNCTION = "hapi.board.facts"  # as in targets.rpc.facts, which loads the compiler


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def serve(tracker: tuple[str, int], key: str, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; then nothing that was started is left.

    tracker: host and port. host, port: what the server listens on; None looks for a free port in ``PORTS``.
    say: gets a line when the server is up, and when it had to start again.

    Only from a process's main thread. Raises TargetError where no port is free.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    tvm.register_global_func(_FACTS_FUNCTION, _facts, override=True)
    os.register_at_fork(after_in_child=_become_session)
    try:
        _keep_up(tracker, key, host, port, say, stop)
    finally:
        _end_sessions()
        _remove_folders()
    # The server's thread waits in accept or for a session, and cannot be told to end.
    sys.stdout.flush()
    os._exit(0)


def _keep_up(
    tracker: tuple[str, int],
    key: str,
    host: str,
    port: int | None,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    died, folder = [], os.getcwd()
    # The text alone: the exception would keep the connection open, and its client waiting.
    threading.excepthook = lambda failure: died.append(str(failure.exc_value))
    pause_s = _FIRST_PAUSE_S / 2
    server: PopenRPCServerState | None = _start(tracker, key, host, port)
    say(f"board {key!r} listens on {host}:{server.port} and registers at {tracker[0]}:{tracker[1]}")
    began_s = time.monotonic()
    while not stop.wait(_LOOK_S):
        if server is not None and server.thread.is_alive():
            continue
        pause_s = _FIRST_PAUSE_S if time.monotonic() - began_s > _LONG_S else min(2 * pause_s, _LONGEST_PAUSE_S)
        say(f"the server stopped ({died[-1]}); it starts again in {pause_s:.1f} s")
        _end_sessions()
        if server is not None:
            server.sock.close()
        # A session that crashes leaves the server in a folder that is gone.
        os.chdir(folder)
        if stop.wait(pause_s):
            return
        try:
            server = _start(tracker, key, host, port)
        except TargetError as error:
            # Its port was taken meanwhile; it may be free again.
            server = None
            died.append(str(error))
        began_s = time.monotonic()


def _start(tracker: tuple[str, int], key: str, host: str, port: int | None) -> PopenRPCServerState:
    first, end = (PORTS.start, PORTS.stop) if port is None else (port, port + 1)
    try:
        return PopenRPCServerState(host, first, end, tracker_addr=tracker, key=key, silent=True)
    except (ValueError, OSError, OverflowError) as error:
        raise TargetError(
            f"no server can listen on {host}, ports {first} to {end - 1} ({error}): is one up there already? give "
            f"another --port, or a --host that is an address of this machine"
        ) from None


def _become_session() -> None:
    """In the fork that serves a session: it ends with the server, and SIGTERM ends it even inside a kernel."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_sessions() -> None:
    for session in multiprocessing.active_children():
        session.kill()
        session.join()


def _remove_folders() -> None:
    """Those of TVM's temporary ones that exist; the server's thread may be making another meanwhile."""
    for _ in range(_REMOVALS):
        with contextlib.suppress(RuntimeError):
            TempDirectory.remove_tempdirs()
            return


def _facts() -> str:
    """JSON; the fields of ``targets.rpc.facts.Facts``, with the machine's architecture instead of a triple."""
    return json.dumps(
        {
            "machine": platform.machine(),
            "host": platform.node(),
            "tvm_version": tvm.__version__,
            "system": f"{platform.system()} {platform.release()}",
            "cores": len(os.sched_getaffinity(0)),
            "free_memory_bytes": _free_memory_bytes(),
            "free_disk_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        }
    )


def _free_memory_bytes() -> int | None:
    """What Linux says is available without swapping; None elsewhere."""
    info = pathlib.Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0][1]) if found else None
