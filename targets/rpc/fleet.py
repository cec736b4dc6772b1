"""All boards behind one key, working in parallel; what a board does wrong costs one attempt of one job.

The fleet always has one worker in the tracker's queue while jobs wait, so every board that comes free joins, whether
it was there from the start or not. A map runs in its caller's thread, and another thread's waits for it.
"""

from __future__ import annotations

import atexit
import functools
import pickle
import threading
import time
from collections.abc import Callable, Sequence

from hapi_tvm.targets.rpc.crew import Crew
from hapi_tvm.targets.rpc.dispatch import Dispatch, Standing
from hapi_tvm.targets.rpc.drift import TOLERANCE
from hapi_tvm.targets.rpc.faults import Health
from hapi_tvm.targets.rpc.jobs import BoardOutcome, Jobs
from hapi_tvm.targets.rpc.speeds import Speeds
from hapi_tvm.targets.rpc.tracker import Tracker
from hapi_tvm.targets.rpc.yardstick import CpuYardstick, Yardstick

__all__ = ["BoardOutcome", "Fleet", "shared_fleet"]

WAIT_S = 60.0
CPU = CpuYardstick()


class Fleet:
    """yardstick: names the boards' device, and tells their speed. wait_s: how long to wait while no board can work at
    all.

    tolerance: a job is done again where the reference kernel's times before and after it are further apart than this
    ratio; inf takes jobs as they come.
    """

    def __init__(
        self,
        tracker: Tracker,
        yardstick: Yardstick = CPU,
        wait_s: float = WAIT_S,
        tolerance: float = TOLERANCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracker = tracker
        self._one_map = threading.Lock()
        crew = Crew(tracker, yardstick, tolerance)
        self._standing = Standing(tracker.key, wait_s, clock, crew, Health(), Speeds())

    def map(
        self,
        function: Callable,
        arguments: Sequence[tuple],
        timeout_s: float,
        on_outcome: Callable[[int, BoardOutcome], None] | None = None,
    ) -> list[BoardOutcome]:
        """Call ``function(board, *arguments[i])`` for every i, each on some board; outcomes in the order of i.

        function: importable by name, with arguments and a value that can be pickled: paths and figures, not modules.
        It may be called again for the same i, on another board, where one failed; it raises ``BoardFault`` to say so.
        timeout_s: for each call. on_outcome: called in order of completion, in the caller's thread.

        Raises TargetError where no board can work for ``wait_s``; what ``on_outcome`` got by then stands.
        """
        if not arguments:
            return []
        calls = [pickle.dumps((function, call)) for call in arguments]
        with self._one_map:
            try:
                return Dispatch(self._standing, Jobs(calls), timeout_s, on_outcome).finished()
            except BaseException:
                self.close()
                raise

    def speeds(self) -> dict[str, float]:
        """Of every board that worked: its speed as a share of the first one's."""
        return self._standing.speeds.relative()

    def close(self) -> None:
        """End all workers: boards are free again. A later ``map`` starts anew."""
        self._standing.crew.close()


def shared_fleet(tracker: Tracker, yardstick: Yardstick = CPU) -> Fleet:
    """The one fleet of this process for a tracker, key and yardstick; ended with the process."""
    return _shared_fleet(tracker, yardstick)


@functools.cache
def _shared_fleet(tracker: Tracker, yardstick: Yardstick) -> Fleet:
    # Cached behind the default: a second fleet would wait for the boards that the first holds.
    fleet = Fleet(tracker, yardstick)
    atexit.register(fleet.close)
    return fleet
