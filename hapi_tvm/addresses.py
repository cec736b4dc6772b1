"""The text that names a tracker, and the key that boards of one kind register under."""

from __future__ import annotations

from hapi_tvm.errors import TargetError

__all__ = ["DEFAULT_TRACKER_PORT", "parse_address", "valid_key"]

DEFAULT_TRACKER_PORT = 9190
"""TVM's own default."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 address stands in brackets, "[::1]:9190". Raises TargetError."""
    host, separator, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not bracketed):
        raise TargetError(
            f"{text!r} is no address of a tracker: write host:port, such as 127.0.0.1:{DEFAULT_TRACKER_PORT} "
            f"(an IPv6 host in brackets)"
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise TargetError(f"{text!r}: the port {port!r} must be a number in 1..65535, such as {DEFAULT_TRACKER_PORT}")
    return host.strip("[]"), int(port)


def valid_key(key: str) -> str:
    """The key as it is. TVM's protocol parts keys at colons and blanks. Raises TargetError."""
    if not key or ":" in key or len(key.split()) != 1 or key != key.strip():
        raise TargetError(f"the key {key!r} must be one word without a colon, such as rasp4b or my-board")
    return key
