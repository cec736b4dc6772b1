"""The run folder: every stage leaves one record in it, so that a build that is killed resumes.

A record is written to a temporary file beside it, synced and moved into place, so a reader meets the old
record or the new one and never a half. It carries the identity of its run and the key of its inputs
(``digest`` of them): one of another run or made from other inputs counts as absent. One process builds
in a folder at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping

import numpy as np

from hapi_tvm import recordio
from hapi_tvm.errors import RecordError, RunBusy, RunMismatch
from hapi_tvm.hashing import digest
from hapi_tvm.recordio import Envelope, from_json, read_record, to_json

__all__ = ["RunFolder", "digest", "from_json", "read_record", "to_json"]

_IDENTITY = "run.json"
_LOCK = ".lock"
_TEMPORARY = ".tmp-"
_ARRAYS = "arrays"


class RunFolder:
    """The records of one run. ``open`` it before use, best in a ``with`` statement, which closes it.

    log: is told, as warnings, which broken files were set aside.
    """

    def __init__(self, path: str | os.PathLike[str], log: logging.Logger):
        self.folder = pathlib.Path(path)
        self._log = log
        self._lock: int | None = None
        self._run = ""

    def open(self, identity: Mapping[str, str]) -> RunFolder:
        """Take the folder for this process; make it, or check that it belongs to ``identity``.

        identity: what no record of the run may differ in (model, target, data set, versions), by name.
        Raises RunBusy while another process has it open, RunMismatch if it belongs to another run or is
        no folder. A broken or missing ``run.json`` is made again where all records are of this run.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunMismatch(f"run folder {self.folder}: {error.strerror}; give another run_dir") from None
        self._lock = _locked(self.folder / _LOCK)
        try:
            for stale in self.folder.glob(f"{_TEMPORARY}*"):
                stale.unlink()
            self._run = digest(dict(identity))
            self._claim(dict(identity))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Leave the folder to other processes. Closing twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def path(self, name: str) -> pathlib.Path:
        """Where the file ``name`` (with its suffix) lies, or would lie."""
        return self.folder / name

    def load(self, name: str, cls: type, key: str):
        """The record ``name`` of class ``cls`` made from inputs of hash ``key``; None if there is none.

        A broken file is renamed to ``<file>.broken-<n>`` and counts as none.
        """
        path = self.path(name + recordio.suffix(cls))
        with self._setting_aside(path):
            envelope = self._read(path, key)
            return envelope and recordio.decode(cls, envelope, str(path))

    def save(self, name: str, record: object, key: str) -> None:
        """Write ``record`` as ``<name>.json``, or ``<name>.npz`` if it has arrays, over what was there."""
        self.write_bytes(name + recordio.suffix(type(record)), recordio.encode(record, self._run, key))

    def load_arrays(self, name: str, key: str) -> dict[str, np.ndarray] | None:
        """What ``save_arrays`` wrote under ``name`` and ``key``; None as for ``load``."""
        path = self.path(f"{name}.npz")
        with self._setting_aside(path):
            envelope = self._read(path, key)
            if envelope and envelope.type != _ARRAYS:
                raise RecordError(f"{path}: holds a {envelope.type}, not plain arrays")
            return envelope and dict(envelope.arrays)

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray], key: str) -> None:
        """Write ``<name>.npz``; arrays of any shape and any dtype but objects."""
        envelope = Envelope(_ARRAYS, self._run, key, {}, arrays)
        self.write_bytes(f"{name}.npz", recordio.pack(envelope, npz=True))

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[pathlib.Path]:
        """A temporary path to write to; it takes the place of ``name`` when the block ends well.

        For writers that want a path, such as an exported library. The path ends as ``name`` does.
        """
        assert self._lock is not None, "open the run folder before writing to it"
        temporary = self.folder / f"{_TEMPORARY}{name}"
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, self.path(name))
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.folder)

    def _read(self, path: pathlib.Path, key: str) -> Envelope | None:
        try:
            envelope = recordio.read(path)
        except FileNotFoundError:
            return None
        return envelope if (envelope.run, envelope.key) == (self._run, key) else None

    @contextlib.contextmanager
    def _setting_aside(self, path: pathlib.Path) -> Iterator[None]:
        """Rename ``path`` where reading it raises RecordError; the caller then returns None."""
        try:
            yield
        except RecordError as error:
            self._set_aside(path, error)

    def _set_aside(self, path: pathlib.Path, error: RecordError) -> None:
        n = 1
        while (aside := path.with_name(f"{path.name}.broken-{n}")).exists():
            n += 1
        path.rename(aside)
        _sync(self.folder)
        self._log.warning("set aside as %s: %s", aside.name, error)

    def _claim(self, identity: dict[str, str]) -> None:
        path = self.path(_IDENTITY)
        try:
            found = _read_identity(path)
        except FileNotFoundError:
            self._check_owners()
        except RecordError as error:
            self._check_owners()
            self._set_aside(path, error)
        else:
            self._check_identity(found, identity)
            return
        self.write_text(_IDENTITY, json.dumps({"identity": identity}, indent=1) + "\n")

    def _check_identity(self, found: Mapping[str, str], identity: Mapping[str, str]) -> None:
        differing = [
            f"{name} is {found.get(name, 'absent')} there, {identity.get(name, 'absent')} here"
            for name in sorted({*found, *identity})
            if found.get(name) != identity.get(name)
        ]
        if differing:
            raise RunMismatch(
                f"run folder {self.folder} is of another run: {'; '.join(differing)}; {self._way_out}"
            )

    def _check_owners(self) -> None:
        """Without a readable ``run.json`` the records tell whose folder it is."""
        for path in sorted((*self.folder.glob("*.json"), *self.folder.glob("*.npz"))):
            try:
                run = recordio.read(path).run
            except RecordError:
                continue  # run.json, a report, or a broken record: load() deals with it
            if run != self._run:
                raise RunMismatch(
                    f"run folder {self.folder} has no readable {_IDENTITY}, and its {path.name} is of "
                    f"run {run}, not of this one ({self._run}); {self._way_out}"
                )

    @property
    def _way_out(self) -> str:
        return f"give another run_dir, or delete this one: rm -r {shlex.quote(str(self.folder))}"


def _locked(path: pathlib.Path) -> int:
    """A descriptor that holds the lock until it is closed, or its process dies. Raises RunBusy.

    Processes that are started with exec do not inherit it; plain forks do, and hold the lock with it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace") or "unknown"
        os.close(lock)
        raise RunBusy(
            f"run folder {path.parent} is in use by process {holder}; "
            "wait until it ends, or give another run_dir"
        ) from None
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _read_identity(path: pathlib.Path) -> dict[str, str]:
    data = path.read_bytes()
    try:
        identity = json.loads(data)["identity"]
        if not all(isinstance(value, str) for value in identity.values()):
            raise ValueError("a value is no string")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is broken ({type(error).__name__}: {error})") from None
    return identity


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
