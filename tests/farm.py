"""A tracker and servers of TVM, real processes on loopback, ended with all that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.tracker import Tracker, summary

HOST = "127.0.0.1"
START_S = 60.0


@contextmanager
def farm(key: str, boards: int = 1) -> Iterator[Tracker]:
    """A tracker with so many boards behind ``key``; their processes are gone when the block ends."""
    with ExitStack() as running:
        tracker = Tracker(HOST, free_port(), key)
        running.enter_context(process("tvm.exec.rpc_tracker", tracker.port))
        await_boards(tracker, 0)
        for _ in range(boards):
            options = ["--tracker", tracker.address, "--key", key]
            running.enter_context(process("tvm.exec.rpc_server", free_port(), *options))
        await_boards(tracker, boards)
        yield tracker


@contextmanager
def process(module: str, port: int, *options: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", module, "--host", HOST, "--port", str(port), "--port-end", str(port + 1)]
    started = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        end_with_children(started)


def end_with_children(started: subprocess.Popen) -> None:
    children = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
    for pid in (started.pid, *(child.pid for child in children)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    started.wait(30)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def await_boards(tracker: Tracker, count: int) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            if len(summary(tracker).boards.get(tracker.key, ())) >= count:
                return
        except TargetError:
            pass  # it is not up yet
        assert time.monotonic() < deadline_s, f"{count} boards of {tracker.key} did not register at {tracker.address}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
