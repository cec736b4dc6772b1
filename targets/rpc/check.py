"""A board's health, as ``hapi-tvm board check`` prints it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.facts import Facts, ask_facts
from hapi_tvm.targets.rpc.fleet import Fleet
from hapi_tvm.targets.rpc.gpu import BoardGpu, ask_gpu
from hapi_tvm.targets.rpc.reference import FLOPS, Reference, reference_library
from hapi_tvm.targets.rpc.tracker import Tracker, nobody_free, summary

__all__ = ["BoardReport", "check_boards", "inspect_board"]

READINGS = 40
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class BoardReport:
    """name: "host:port". gpu: its first, None where TVM finds none there. round_trip_ms: of one call to the board and
    back.

    speed_gflops, noise, drift: of the processor's reference kernel, in ``READINGS`` times its windows; None where
    the board's architecture has none here, and ``unmeasured`` says why. noise: half the spread of the middle half of
    the windows, as a share of their median. drift: the median of the last quarter over that of the first, less 1;
    above 0 is slower.
    """

    name: str
    facts: Facts
    gpu: BoardGpu | None
    round_trip_ms: float
    speed_gflops: float | None
    noise: float | None
    drift: float | None
    unmeasured: str | None


def inspect_board(board: Board) -> BoardReport:
    """Runs on a fleet's worker."""
    facts = ask_facts(board)
    gpu = ask_gpu(board)
    round_trip_ms = _round_trip_ms(board)
    try:
        if facts.triple is None:
            raise TargetError("its server does not tell its processor: start it with hapi-tvm board serve")
        with tempfile.TemporaryDirectory(prefix="hapi-check-") as folder:
            reference = Reference(board, reference_library(facts.triple, folder))
            readings_us = [taken_us for _ in range(READINGS) for taken_us in reference.windows_us()]
    except TargetError as error:
        return BoardReport(board.name, facts, gpu, round_trip_ms, None, None, None, str(error))
    first, _, third = statistics.quantiles(readings_us, n=4)
    median_us = statistics.median(readings_us)
    quarter = len(readings_us) // 4
    early_us, late_us = readings_us[:quarter], readings_us[-quarter:]
    return BoardReport(
        board.name,
        facts,
        gpu,
        round_trip_ms,
        speed_gflops=FLOPS / median_us / 1e3,
        noise=(third - first) / 2 / median_us,
        drift=statistics.median(late_us) / statistics.median(early_us) - 1,
        unmeasured=None,
    )


def check_boards(tracker: Tracker, wait_s: float) -> list[BoardReport]:
    """Of every board behind the key that is free within ``wait_s``, sorted by name.

    Raises TargetError where nobody is registered under the key, or none of them can work.
    """
    registered = summary(tracker).boards.get(tracker.key, ())
    if not registered:
        raise TargetError(nobody_free(tracker))
    fleet = Fleet(tracker, wait_s=wait_s)
    try:
        outcomes = fleet.map(inspect_board, [()] * len(registered), TIMEOUT_S)
    finally:
        fleet.close()
    reports = {outcome.value.name: outcome.value for outcome in outcomes if outcome.error is None}
    if not reports:
        raise TargetError(f"no board of key {tracker.key!r} could be checked: {outcomes[0].error}")
    return [reports[name] for name in sorted(reports)]


def _round_trip_ms(board: Board) -> float:
    name = board.write(os.urandom(1))
    taken_s = []
    for _ in range(10):
        began_s = time.perf_counter()
        board.session.download(name)
        taken_s.append(time.perf_counter() - began_s)
    return 1e3 * statistics.median(taken_s)
