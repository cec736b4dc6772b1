"""The jobs of one ``Fleet.map``: which wait, which boards they failed on, what became of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from hapi_tvm.targets.forkserver import Outcome

__all__ = ["BoardOutcome", "Job", "Jobs"]

ATTEMPTS = 3
"""How often a job is begun, at most."""


@dataclass(frozen=True, slots=True)
class BoardOutcome(Outcome):
    """board: where the job was done; None where it was given up. scale: times measured there, multiplied by it, are
    what the fleet's first board would have taken (by the reference kernel; 1.0 where none runs)."""

    board: str | None = None
    scale: float = 1.0


@dataclass(eq=False, slots=True)
class Job:
    """call: pickled (function, arguments). failed_on: the boards of its failed attempts, in order."""

    index: int
    call: bytes
    failed_on: list[str] = field(default_factory=list)


class Jobs:
    """A job waits, or is with a board, or has its outcome in ``outcomes``."""

    def __init__(self, calls: Sequence[bytes]) -> None:
        self._waiting = [Job(index, call) for index, call in enumerate(calls)]
        self.outcomes: list[BoardOutcome | None] = [None] * len(calls)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        return self.outcomes.count(None)

    def take(self, board: str, others: Collection[str]) -> Job | None:
        """The first waiting job for ``board``, which is no longer waiting then; None where there is none.

        others: the other boards at work. A job that failed on this board is left to one of them on which it did not.
        """
        for job in self._waiting:
            if board not in job.failed_on or set(others) <= set(job.failed_on):
                self._waiting.remove(job)
                return job
        return None

    def finish(self, job: Job, outcome: BoardOutcome) -> None:
        self.outcomes[job.index] = outcome

    def put_back(self, job: Job) -> None:
        """It was never begun: it is the next."""
        self._waiting.insert(0, job)

    def failed(self, job: Job, board: str, reason: str) -> BoardOutcome | None:
        """An attempt failed by the board's fault: the job waits again, or after ``ATTEMPTS`` gets the outcome returned.

        It is the next then, so that it does not come after everything else.
        """
        job.failed_on.append(board)
        if len(job.failed_on) < ATTEMPTS:
            self._waiting.insert(0, job)
            return None
        boards = ", ".join(job.failed_on)
        outcome = BoardOutcome(error=f"given up after {ATTEMPTS} attempts, on {boards}; the last: {reason}")
        self.finish(job, outcome)
        return outcome
