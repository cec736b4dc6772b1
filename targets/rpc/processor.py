"""What a board says of its processor."""

from __future__ import annotations

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.machine_facts import MachineFacts
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.facts import ask_facts
from hapi_tvm.targets.rpc.fleet import Fleet, shared_fleet
from hapi_tvm.targets.rpc.tracker import Tracker

__all__ = ["machine_facts_of", "processor_of"]

FUNCTION = "target.llvm_get_system_cpu"
TIMEOUT_S = 20.0


def processor_of(tracker: Tracker) -> str:
    """LLVM's name of the processor of one board behind the tracker's key.

    Raises TargetError where no board answers, or it does not know: its server has no compiler.
    """
    (outcome,) = shared_fleet(tracker).map(_processor, [()], TIMEOUT_S)
    if outcome.value is None:
        why = outcome.error or f"its server has no {FUNCTION}"
        raise TargetError(
            f"the board of key {tracker.key!r} at {tracker.address} does not tell its processor ({why}): give "
            "mcpu=..., which /proc/cpuinfo on the board hints at, or mcpu='generic'"
        )
    return outcome.value


def machine_facts_of(tracker: Tracker, fleet: Fleet) -> MachineFacts:
    """Of one board behind the key, with the speeds of all that worked in this process. Raises TargetError."""
    (outcome,) = fleet.map(_facts, [()], TIMEOUT_S)
    if outcome.error is not None:
        raise TargetError(f"the board of key {tracker.key!r} at {tracker.address} tells nothing: {outcome.error}")
    processor, cores, system = outcome.value
    boards = ", ".join(f"{name} at {speed:.2f}" for name, speed in fleet.speeds().items())
    return MachineFacts(f"{processor}, key {tracker.key}" + (f" (speed of {boards})" if boards else ""), cores, system)


def _processor(board: Board) -> str | None:
    """None where its server has no compiler."""
    try:
        function = board.session.get_function(FUNCTION)
    except (AttributeError, ValueError):
        return None
    return str(function())


def _facts(board: Board) -> tuple[str, int, str]:
    """Processor, cores (where the server does not tell, the threads that TVM would use) and system."""
    told = ask_facts(board)
    cores = told.cores or int(board.session.get_function("runtime.NumThreads")())
    processor = _processor(board) or told.triple or "unknown"
    if not board.on_cpu:
        processor = f"{board.device.device_name} on {processor}"
    return processor, cores, told.system or told.triple or "unknown"
