"""A library under a name that was never used."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fresh_name"]


@contextmanager
def fresh_name(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A link to ``path``, which ends in ``.so``, while it is loaded.

    The system's loader answers a known name with the library that it loaded then, also where another file has
    taken its place since; and TVM keeps every library for the life of the process.
    """
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as folder:
        link = pathlib.Path(folder) / path.with_suffix(".so").name
        link.symlink_to(path.resolve())
        yield link
