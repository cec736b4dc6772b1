"""Boards: how they are found at a tracker, held, watched, and how a fleet of them shares the work."""

from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.faults import BoardFault
from hapi_tvm.targets.rpc.fleet import BoardOutcome, Fleet, shared_fleet
from hapi_tvm.targets.rpc.tracker import Tracker, parse_tracker

__all__ = ["Board", "BoardFault", "BoardOutcome", "Fleet", "Tracker", "parse_tracker", "shared_fleet"]
