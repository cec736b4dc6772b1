"""Which processor a library is for, by its ELF header (``e_machine``; values as in Linux's elf.h)."""

from __future__ import annotations

import pathlib

__all__ = ["machine_of"]

_MAGIC = b"\x7fELF"
_BYTE_ORDER, _MACHINE = 5, slice(18, 20)
_MACHINES = {62: "x86_64", 183: "aarch64"}


def machine_of(path: pathlib.Path) -> str | None:
    """Its name as ``platform.machine`` gives it; None for a file of another kind or for any other processor."""
    with path.open("rb") as file:
        header = file.read(_MACHINE.stop)
    if len(header) < _MACHINE.stop or not header.startswith(_MAGIC):
        return None
    order = "big" if header[_BYTE_ORDER] == 2 else "little"
    return _MACHINES.get(int.from_bytes(header[_MACHINE], order))
