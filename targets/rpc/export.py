"""Write a shared library for a board."""

from __future__ import annotations

import os

import tvm

from hapi_tvm.targets.cross import cross_linker

__all__ = ["export"]


def export(compiled: tvm.runtime.Module | tvm.runtime.Executable, path: str | os.PathLike[str], cc: str | None) -> None:
    """cc: the cross compiler that links it; None takes this machine's linker. Raises BuildError."""
    compiled.export_library(str(path), fcompile=None if cc is None else cross_linker(cc))
