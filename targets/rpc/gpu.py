"""What a board says of its GPU."""

from __future__ import annotations

from dataclasses import dataclass

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.facts import ask_facts
from hapi_tvm.targets.rpc.fleet import Fleet
from hapi_tvm.targets.rpc.tracker import Tracker

__all__ = ["BoardGpu", "ask_gpu", "gpu_of"]

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class BoardGpu:
    """name: the driver's. arch: such as "sm_87". triple: LLVM's, of the host; None where its server does not tell."""

    name: str
    arch: str
    triple: str | None


def gpu_of(tracker: Tracker) -> BoardGpu:
    """The first GPU of one board behind the tracker's key. Raises TargetError where no board answers or has none."""
    fleet = Fleet(tracker)
    try:
        (outcome,) = fleet.map(ask_gpu, [()], TIMEOUT_S)
    finally:
        # The board is wanted next by a fleet that works on its GPU.
        fleet.close()
    if outcome.value is None:
        why = outcome.error or "TVM finds no GPU of NVIDIA's on it"
        raise TargetError(
            f"the board of key {tracker.key!r} at {tracker.address} has no GPU to run on ({why}): `nvidia-smi` on the "
            "board shows whether the driver is there, and its TVM takes CUDA's runtime library beside it"
        )
    return outcome.value


def ask_gpu(board: Board) -> BoardGpu | None:
    """Runs on a fleet's worker. None where TVM finds no GPU there."""
    device = board.session.device("cuda", 0)
    if not device.exist:
        return None
    arch = f"sm_{str(device.compute_version).replace('.', '')}"
    return BoardGpu(str(device.device_name), arch, ask_facts(board).triple)
