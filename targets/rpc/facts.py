"""What a board says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tvm

from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.faults import BoardFault

__all__ = ["FACTS_FUNCTION", "Facts", "ask_facts"]

FACTS_FUNCTION = "hapi.board.facts"
"""Global function of a server that ``hapi-tvm board serve`` started (``hapi_tvm.board_server``); returns JSON."""
_TRIPLE_FUNCTION = "target.llvm_get_system_triple"


@dataclass(frozen=True, slots=True)
class Facts:
    """None where the board's server does not say: one that was started by ``tvm.exec.rpc_server`` knows its triple
    at most.

    triple: LLVM's, of the machine, such as "aarch64-unknown-linux-gnu". system: name and release of the operating
    system. free_disk_bytes: where uploaded files lie.
    """

    triple: str | None = None
    host: str | None = None
    tvm_version: str | None = None
    system: str | None = None
    cores: int | None = None
    free_memory_bytes: int | None = None
    free_disk_bytes: int | None = None


def ask_facts(board: Board) -> Facts:
    """Raises BoardFault where the board runs another version of TVM."""
    triple = _call_if_known(board, _TRIPLE_FUNCTION)
    told = _call_if_known(board, FACTS_FUNCTION)
    if told is None:
        return Facts(triple=triple)
    said = json.loads(told)
    machine = said.pop("machine")
    facts = Facts(triple=triple or f"{machine}-unknown-linux-gnu", **said)
    if facts.tvm_version != tvm.__version__:
        raise BoardFault(
            f"it runs TVM {facts.tvm_version}, and here is {tvm.__version__}: install "
            f"apache-tvm=={tvm.__version__} on the board",
            lasting=True,
        )
    return facts


def _call_if_known(board: Board, name: str) -> str | None:
    """What a global function of the board returns; None where the board has none of that name."""
    try:
        function = board.session.get_function(name)
    except (AttributeError, ValueError):
        return None
    return str(function())
