"""A MetaSchedule runner that times candidates on boards, as many at once as boards answer.

Times are scaled to the fleet's first board, so that candidates that ran on different ones can be compared.
"""

from __future__ import annotations

import threading

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.kernel_timing import Shapes, shapes_of, time_library
from hapi_tvm.targets.rpc.board import Board
from hapi_tvm.targets.rpc.fleet import BoardOutcome, Fleet
from hapi_tvm.targets.rpc.on_board import OnBoard

__all__ = ["FleetRunner"]


def _time_on(
    board: Board, threads: int, path: str, shapes: Shapes, repeats: int, min_repeat_ms: int
) -> list[float]:
    return time_library(OnBoard(board, threads, cc=None), path, shapes, repeats, min_repeat_ms)


class _Waiting:
    """The outcomes of one call of ``Fleet.map`` as they come in; its error, if it raises one, is everybody's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._outcomes: dict[int, BoardOutcome] = {}
        self._error: BaseException | None = None

    def put(self, index: int, outcome: BoardOutcome) -> None:
        with self._changed:
            self._outcomes[index] = outcome
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def has(self, index: int) -> bool:
        with self._changed:
            return index in self._outcomes or self._error is not None

    def get(self, index: int) -> BoardOutcome:
        """Waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: index in self._outcomes or self._error is not None)
            if index not in self._outcomes:
                raise self._error
            return self._outcomes[index]


@derived_object
class _Future(ms.runner.PyRunnerFuture):
    def __init__(self, waiting: _Waiting, index: int) -> None:
        super().__init__()
        self.waiting = waiting
        self.index = index

    def done(self) -> bool:
        return self.waiting.has(self.index)

    def result(self) -> ms.runner.RunnerResult:
        outcome = self.waiting.get(self.index)
        if outcome.error is not None:
            return ms.runner.RunnerResult(None, outcome.error)
        return ms.runner.RunnerResult([outcome.scale * seconds for seconds in outcome.value], None)


@derived_object
class FleetRunner(ms.runner.PyRunner):
    """repeats, min_repeat_ms: as ``time_library`` takes them. threads: of TVM's runtime on a board. timeout_s: for each
    attempt at a candidate, all its repeats and its upload."""

    def __init__(
        self, fleet: Fleet, repeats: int, min_repeat_ms: int, threads: int = 1, timeout_s: float = 60.0
    ) -> None:
        super().__init__()
        self.fleet = fleet
        self.repeats = repeats
        self.min_repeat_ms = min_repeat_ms
        self.threads = threads
        self.timeout_s = timeout_s

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        """Returns at once. A second call waits in the fleet until the first is through."""
        calls = [
            (self.threads, str(item.artifact_path), shapes_of(item), self.repeats, self.min_repeat_ms)
            for item in runner_inputs
        ]
        waiting = _Waiting()
        # A daemon: Ctrl-C in the caller must not wait for boards.
        threading.Thread(target=self._time_all, args=(calls, waiting), daemon=True).start()
        return [_Future(waiting, index) for index in range(len(calls))]

    def _time_all(self, calls: list[tuple], waiting: _Waiting) -> None:
        try:
            self.fleet.map(_time_on, calls, self.timeout_s, on_outcome=waiting.put)
        except BaseException as error:
            waiting.fail(error)
