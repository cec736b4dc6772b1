"""Ask a board for its processor."""

from __future__ import annotations

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.tracker import Tracker

__all__ = ["processor_of"]

FUNCTION = "target.llvm_get_system_cpu"
TIMEOUT_S = 20.0


def processor_of(tracker: Tracker) -> str:
    """LLVM's name of the processor of one board behind the tracker's key.

    Raises TargetError where no board answers, or it does not know: its server has no compiler.
    """
    (outcome,) = shared_fleet(tracker).map(_ask, [()], TIMEOUT_S)
    if outcome.error is not None:
        raise TargetError(
            f"the board of key {tracker.key!r} at {tracker.address} does not tell its processor ({outcome.error}): "
            "give mcpu=..., which /proc/cpuinfo on the board hints at, or mcpu='generic'"
        )
    return outcome.value


def _ask(board: Board) -> str:
    return str(board.session.get_function(FUNCTION)())
