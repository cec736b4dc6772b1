"""A process that has TVM loaded and serves its starter over a socket, until that socket closes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

from hapi_tvm.errors import BuildError
from hapi_tvm.targets.messages import receive

__all__ = ["READY", "PreloadedProcess"]

READY = "ready"
"""What the process sends once it has loaded what it needs."""

_BOOT = """
import sys
sys.path[:] = {path!r}
from hapi_tvm import tvm_compat
tvm_compat.skip_torch()
from {module} import {function}
{function}({control})
"""
# OpenBLAS starts its threads at import; a fork of a process with threads may dead-lock.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_START_TIMEOUT_S = 120.0


class PreloadedProcess:
    """serve: a module's function, called in the process with the number of its end of the socket.

    It sends ``READY``, and returns when the socket is closed: the process ends with its starter.
    """

    def __init__(self, serve: Callable[[int], None]) -> None:
        self._boot = {"module": serve.__module__, "function": serve.__name__}
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def control(self) -> socket.socket:
        """Our end of the socket; starts the process if there is none, or if it died.

        Raises BuildError if it does not start.
        """
        if self.runs:
            return self._control
        self.close()
        ours, theirs = socket.socketpair()
        path = [os.path.abspath(entry) for entry in sys.path]
        with theirs, tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT.format(path=path, control=theirs.fileno(), **self._boot)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )
            theirs.close()
            self._control = ours
            self._await_ready(stderr)
        return ours

    def _await_ready(self, stderr) -> None:
        self._control.settimeout(_START_TIMEOUT_S)
        try:
            receive(self._control)
        except (EOFError, OSError) as error:
            self.close()
            stderr.seek(0)
            tail = stderr.read().decode(errors="replace").strip()[-2000:]
            raise BuildError(f"a process of workers did not start: {tail or error}") from None
        self._control.settimeout(None)

    def close(self) -> None:
        """End the process. A later ``control`` starts a new one."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None
