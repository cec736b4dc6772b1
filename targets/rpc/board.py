"""One live session to one board."""

from __future__ import annotations

import itertools
import os
import pathlib

import numpy as np
import tvm
from tvm import rpc
from tvm.rpc.base import RPC_SESS_MASK

from hapi_tvm.targets.rpc.faults import BoardFault, brief
from hapi_tvm.targets.rpc.tracker import Grant

__all__ = ["Board", "open_board"]

_OTHER_VERSION = "protocol version mismatch"


class Board:
    """What a function gets that runs on a board; it lives in a worker process, and never outlives its session.

    name: "host:port". device: where tensors are to lie, on the board. largest_bytes: of the files uploaded so far.
    """

    def __init__(self, name: str, session: rpc.RPCSession, device: tvm.runtime.Device) -> None:
        self.name = name
        self.session = session
        self.device = device
        self.largest_bytes = 0
        self._uploads = itertools.count()
        self._kept: set[str] = set()

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the board's processor."""
        return self.device.dlpack_device_type() % RPC_SESS_MASK == tvm.cpu().dlpack_device_type()

    def upload(self, path: str | os.PathLike) -> str:
        """Copy a file to the board; returns its name there, which is new: a name that comes again kills a session."""
        path = pathlib.Path(path)
        return self.write(path.read_bytes(), path.name)

    def write(self, data: bytes, suffix: str = "data") -> str:
        """As ``upload``, from memory."""
        name = f"{next(self._uploads)}-{suffix}"
        self.largest_bytes = max(self.largest_bytes, len(data))
        self._kept.add(name)
        self.session.upload(bytearray(data), name)
        return name

    def load(self, path: str | os.PathLike) -> tvm.runtime.Module:
        """Upload a library and load it there."""
        return self.session.load_module(self.upload(path))

    def tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        """A copy of ``array`` on the board's device."""
        return tvm.runtime.tensor(array, self.device)

    def remove(self, *names: str) -> None:
        """Remove files that ``upload`` made; a library that is loaded may be removed. All of them, given none."""
        for name in names or tuple(self._kept):
            self.session.remove(name)
            self._kept.discard(name)


def open_board(grant: Grant, device: str, session_s: float) -> Board:
    """Connect to the board that was granted, for at most ``session_s``: then the board itself ends the session.

    device: TVM's name of the device, such as "cpu" or "cuda".

    TVM's connection knows no time-out: call it where another process can end this one. Raises BoardFault.
    """
    try:
        session = rpc.connect(grant.host, grant.port, grant.match_key, session_timeout=session_s)
    except Exception as error:
        text = brief(error)
        if _OTHER_VERSION in str(error):
            raise BoardFault(
                f"its server is of another version of TVM than {tvm.__version__} here: install "
                f"apache-tvm=={tvm.__version__} on the board ({text})",
                lasting=True,
            ) from None
        raise BoardFault(f"it does not open: {text}") from None
    return Board(grant.name, session, session.device(device, 0))
