"""TVM's tracker, asked over its own protocol with a limit on every wait.

A frame is a little-endian int32 of its length and so many bytes of JSON; a connection starts with a magic number
from both sides (apache-tvm 0.27, ``tvm/rpc/base.py`` and ``tracker.py``). ``tvm.rpc.TrackerSession`` speaks the
same, but waits without an end for a tracker that is silent and for a board that is never free.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode

from hapi_tvm.addresses import DEFAULT_TRACKER_PORT, parse_address, valid_key
from hapi_tvm.errors import TargetError

__all__ = ["Grant", "Summary", "Tracker", "nobody_free", "parse_tracker", "queued", "request", "summary"]

ANSWER_TIMEOUT_S = 5.0
_INT = struct.Struct("<i")
_LARGEST_FRAME_BYTES = 1 << 24
_PRIORITY = 1


@dataclass(frozen=True, slots=True)
class Tracker:
    """Where boards are found, and the key that those wanted registered under."""

    host: str
    port: int
    key: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Summary:
    """boards: by key, "host:port" of every board, busy or free. free: by key, how many nobody uses."""

    boards: dict[str, tuple[str, ...]]
    free: dict[str, int]


@dataclass(frozen=True, slots=True)
class Grant:
    """A board that the tracker gave us: ``match_key`` opens it once, within some six seconds."""

    host: str
    port: int
    match_key: str

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


def parse_tracker(address: str, key: str) -> Tracker:
    """A tracker from "host:port" and a key. Raises TargetError where either is malformed; connects to nothing."""
    host, port = parse_address(address)
    return Tracker(host, port, valid_key(key))


def summary(tracker: Tracker, timeout_s: float = ANSWER_TIMEOUT_S) -> Summary:
    """Who is registered, whatever the key. Raises TargetError where no tracker answers within ``timeout_s``."""
    boards: dict[str, list[str]] = {}
    with _connected(tracker, timeout_s) as link:
        link.say([TrackerCode.SUMMARY])
        status, value = link.hear()
        if status != TrackerCode.SUCCESS:
            raise TargetError(f"the tracker at {tracker.address} refused to say who is registered: {value!r}")
        for server in value["server_info"]:
            host, port = server["addr"]
            boards.setdefault(server["key"].removeprefix("server:"), []).append(f"{host}:{port}")
        free = {key: int(queue["free"]) for key, queue in value["queue_info"].items()}
    return Summary({key: tuple(sorted(names)) for key, names in boards.items()}, free)


@contextlib.contextmanager
def queued(tracker: Tracker) -> Iterator[Callable[[float], Grant | None]]:
    """A place in the queue for a board of the key, left at the end of the block.

    Yields a function that waits so many seconds for a board and returns it, or None while there is none. Keep the
    place rather than leave and come again: a board that is given to someone who just left is lost to all for seconds.

    Raises TargetError where no tracker answers, also later, when it is gone.
    """
    with _connected(tracker, ANSWER_TIMEOUT_S) as link:
        link.say([TrackerCode.REQUEST, tracker.key, "", _PRIORITY])
        yield lambda wait_s: _granted(tracker, link) if link.has_answer(wait_s) else None


def request(tracker: Tracker, wait_s: float) -> Grant | None:
    """The next board of the key that is free; None where none was within ``wait_s``. Errors as ``queued``."""
    with queued(tracker) as turn:
        return turn(wait_s)


def _granted(tracker: Tracker, link: _Link) -> Grant:
    status, value = link.hear()
    if status != TrackerCode.SUCCESS:
        raise TargetError(f"the tracker at {tracker.address} refused a board for key {tracker.key!r}: {value!r}")
    host, port, match_key = value
    return Grant(host, int(port), match_key)


def nobody_free(tracker: Tracker) -> str:
    """Why the tracker has no board for us, for people. Raises TargetError where no tracker answers."""
    found = summary(tracker)
    boards = found.boards.get(tracker.key, ())
    if boards:
        return f"of key {tracker.key!r} all are in use or not answering: {', '.join(boards)}"
    keys = ", ".join(repr(key) for key in sorted(found.boards)) or "none at all"
    return (
        f"nobody is registered under key {tracker.key!r} at the tracker {tracker.address} (keys there: {keys}); "
        f"on the board: hapi-tvm board serve --tracker {tracker.address} --key {tracker.key}"
    )


class _Link:
    """One connection to a tracker. timeout_s: for every answer that is due."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    def say(self, message: list) -> None:
        data = json.dumps(message).encode()
        self._connection.sendall(_INT.pack(len(data)) + data)

    def has_answer(self, wait_s: float) -> bool:
        readable, _, _ = select.select([self._connection], [], [], wait_s)
        return bool(readable)

    def hear(self) -> Any:
        (size_bytes,) = _INT.unpack(self._take(_INT.size))
        if not 0 < size_bytes <= _LARGEST_FRAME_BYTES:
            raise ValueError(f"a frame of {size_bytes} bytes")
        return json.loads(self._take(size_bytes))

    def greet(self) -> None:
        self._connection.sendall(_INT.pack(RPC_TRACKER_MAGIC))
        (magic,) = _INT.unpack(self._take(_INT.size))
        if magic != RPC_TRACKER_MAGIC:
            raise ValueError(f"the greeting {magic:#x}")

    def _take(self, size_bytes: int) -> bytes:
        deadline_s = time.monotonic() + self._timeout_s
        chunks = bytearray()
        while len(chunks) < size_bytes:
            self._connection.settimeout(max(deadline_s - time.monotonic(), 1e-3))
            chunk = self._connection.recv(size_bytes - len(chunks))
            if not chunk:
                raise EOFError
            chunks += chunk
        return bytes(chunks)


@contextlib.contextmanager
def _connected(tracker: Tracker, timeout_s: float) -> Iterator[_Link]:
    """A connection that has greeted a tracker; what goes wrong on it becomes a TargetError."""
    with _dialled(tracker, timeout_s) as connection:
        link = _Link(connection, timeout_s)
        try:
            link.greet()
        except (TimeoutError, EOFError, ValueError, ConnectionError) as error:
            raise _not_a_tracker(tracker, error, timeout_s) from None
        try:
            yield link
        except TimeoutError:
            raise TargetError(
                f"the tracker at {tracker.address} did not answer within {timeout_s:.0f} s: is its machine overloaded, "
                f"or the tracker stopped?"
            ) from None
        except (EOFError, ConnectionError):
            raise TargetError(f"the tracker at {tracker.address} closed the connection; is it going down?") from None
        except (ValueError, TypeError, KeyError) as error:
            raise TargetError(f"the tracker at {tracker.address} answers nonsense: {error}") from None


def _dialled(tracker: Tracker, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection((tracker.host, tracker.port), timeout=timeout_s)
    except socket.gaierror as error:
        raise TargetError(
            f"no machine is called {tracker.host!r} ({error.strerror}): give the tracker as host:port or by its address"
        ) from None
    except TimeoutError:
        raise TargetError(
            f"nothing at {tracker.address} answered within {timeout_s:.0f} s: is the machine on, and does a firewall "
            f"let port {tracker.port} pass?"
        ) from None
    except OSError as error:
        raise TargetError(
            f"no tracker at {tracker.address} ({error.strerror}): start one there with python -m tvm.exec.rpc_tracker "
            f"--host {tracker.host} --port {tracker.port} --port-end {tracker.port + 1}"
        ) from None


def _not_a_tracker(tracker: Tracker, error: Exception, timeout_s: float) -> TargetError:
    said = {
        TimeoutError: f"said nothing for {timeout_s:.1f} s",
        EOFError: "closed the connection",
        ConnectionResetError: "reset the connection",
    }.get(type(error), f"answered {error}")
    return TargetError(
        f"what listens at {tracker.address} is no tracker of TVM (it {said}): give the tracker's port, "
        f"{DEFAULT_TRACKER_PORT} unless it was started with another, and not that of a board"
    )
