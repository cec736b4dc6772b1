"""Write a shared library for a board."""

from __future__ import annotations

import os

import tvm

__all__ = ["export"]


def export(compiled: tvm.runtime.Module | tvm.runtime.Executable, path: str | os.PathLike[str], cc: str | None) -> None:
    """cc: the cross compiler that links it; None takes this machine's linker."""
    if cc is None:
        compiled.export_library(str(path))
    else:
        compiled.export_library(str(path), cc=cc)
