"""Files of one JSON value a line, which survive a kill in the middle of a write.

A line cut short, or garbage, is moved to ``<file>.broken-<n>`` when the file is opened next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["append", "locked", "read_repaired", "replace"]

logger = logging.getLogger(__name__)


def append(path: pathlib.Path, value: Any) -> None:
    """Add one line; it is with the operating system when this returns, so a kill cannot lose it."""
    with path.open("ab") as file:
        file.write((json.dumps(value) + "\n").encode())


def replace(path: pathlib.Path, lines: Iterable[str]) -> None:
    """Write the whole file anew; a reader sees the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def set_aside(path: pathlib.Path, good: Iterable[str], broken: list[str]) -> None:
    """Keep ``good`` in the file and move ``broken`` to the next free ``<file>.broken-<n>``."""
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    replace(aside, broken)
    replace(path, good)
    logger.warning("%s: %d broken lines moved to %s; what they held is done anew", path, len(broken), aside)


def read_repaired(path: pathlib.Path, valid: Callable[[Any], bool]) -> list[Any]:
    """The values of a file, after lines that are no JSON or not ``valid`` were set aside.

    A missing file has no values. ``valid`` must not raise.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode(errors="replace")
    good, broken, values = [], [], []
    for line in text.split("\n"):
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            broken.append(line)
            continue
        if valid(value):
            good.append(line)
            values.append(value)
        else:
            broken.append(line)
    if broken:
        set_aside(path, good, broken)
    elif text and not text.endswith("\n"):
        replace(path, good)
    return values


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold ``folder`` against other processes; the operating system lets go of it when this one ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that uses %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
