"""Write a shared library for a board."""

from __future__ import annotations

import os

import tvm

__all__ = ["export"]


def export(executable: tvm.runtime.Executable, path: str | os.PathLike[str], cc: str | None) -> None:
    """cc: the cross compiler that links it; None takes this machine's linker."""
    if cc is None:
        executable.export_library(str(path))
    else:
        executable.export_library(str(path), cc=cc)
