"""One stable hash for everything that a record can depend on."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np

__all__ = ["digest"]

_CHUNK_BYTES = 1 << 23


def digest(*parts: object) -> str:
    """The first 16 hex digits of SHA-256 over ``parts``; the same in every process and on every machine.

    parts: None, bool, int, float, str, bytes, NumPy arrays and scalars, and tuples, lists, mappings and
    dataclasses of these. Types count (1, 1.0 and True differ), the order of a mapping does not. Arrays
    count with dtype and shape and are read in chunks, so a memory map is never held whole.
    Raises TypeError for anything else: a hash of an address would hide a change.
    """
    sink = hashlib.sha256()
    _feed(sink, parts)
    return sink.hexdigest()[:16]


def _feed(sink, part: object) -> None:
    if isinstance(part, np.ndarray):
        _feed_array(sink, part)
    elif isinstance(part, np.generic):
        _feed(sink, part.item())
    elif is_dataclass(part) and not isinstance(part, type):
        _tag(sink, "dataclass", type(part).__name__.encode())
        _feed(sink, {field.name: getattr(part, field.name) for field in fields(part)})
    elif isinstance(part, Mapping):
        _tag(sink, "mapping", len(part).to_bytes(8, "little"))
        for item in sorted(part.items()):
            _feed(sink, item)
    elif isinstance(part, tuple | list):
        _tag(sink, "sequence", len(part).to_bytes(8, "little"))
        for item in part:
            _feed(sink, item)
    else:
        _tag(sink, *_scalar(part))


def _scalar(part: object) -> tuple[str, bytes]:
    """Kind and bytes. A subclass counts as its base: names that TVM hands out are a ``str`` of its own."""
    match part:
        case None:
            return "NoneType", b""
        case bytes():
            return "bytes", part
        case str():
            return "str", part.encode()
        case bool():
            return "bool", str(int(part)).encode()
        case int():
            return "int", str(int(part)).encode()
        case float():
            return "float", struct.pack("<d", part)
    raise TypeError(f"digest takes no {type(part).__name__}: {part!r}")


def _feed_array(sink, array: np.ndarray) -> None:
    if array.dtype.hasobject:
        raise TypeError(f"digest takes no array of Python objects (dtype {array.dtype})")
    _tag(sink, "array", repr((array.dtype.str, array.shape)).encode())
    rows = np.atleast_1d(array)
    step = max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        sink.update(rows[start : start + step].tobytes())


def _tag(sink, kind: str, data: bytes) -> None:
    """Feed ``data`` with its kind and length, so that no two sequences of parts read the same."""
    sink.update(f"{kind}:{len(data)}:".encode())
    sink.update(data)
