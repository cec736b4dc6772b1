"""Pickled messages over a socket, between processes of ours: the length in eight bytes, then the pickle."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

__all__ = ["receive", "send"]

_LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, message: Any) -> None:
    """Raises OSError when the other side is gone."""
    data = pickle.dumps(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Raises EOFError when the other side is gone, OSError when it was reset."""
    (size_bytes,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    return pickle.loads(_receive_exactly(connection, size_bytes))


def _receive_exactly(connection: socket.socket, size_bytes: int) -> bytes:
    chunks = bytearray()
    while len(chunks) < size_bytes:
        chunk = connection.recv(size_bytes - len(chunks))
        if not chunk:
            raise EOFError
        chunks += chunk
    return bytes(chunks)
