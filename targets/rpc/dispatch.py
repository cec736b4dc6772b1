"""One ``Fleet.map``: who gets which job, what is done about what workers say, and when hope is given up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.crew import Crew, Ended, State, Worker
from hapi_tvm.targets.rpc.faults import Health
from hapi_tvm.targets.rpc.jobs import BoardOutcome, Job, Jobs
from hapi_tvm.targets.rpc.protocol import Again, Done, Fault, Go, Granted, Ready, Retired, Waiting
from hapi_tvm.targets.rpc.speeds import Speeds

__all__ = ["Dispatch", "Standing"]

logger = logging.getLogger(__name__)

OPEN_S = 60.0
# The reference kernel after the job is not the job's time.
CHECK_S = 5.0
# A session outlives the longest job that was begun in it, and a job that hangs blocks its board as long.
SHORTEST_SESSION_S = 60.0
LONGEST_JOBS_A_SESSION = 3
ASK_AGAIN_S = 1.0
_LOOK_S = 1.0
_NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a fleet keeps from one map to the next. wait_s: how long to hope while no board can work."""

    key: str
    wait_s: float
    clock: Callable[[], float]
    crew: Crew
    health: Health
    speeds: Speeds


class Dispatch:
    """timeout_s: for each job. on_outcome: called with a job's index and its outcome, as they come."""

    def __init__(
        self,
        standing: Standing,
        jobs: Jobs,
        timeout_s: float,
        on_outcome: Callable[[int, BoardOutcome], None] | None,
    ) -> None:
        self._key = standing.key
        self._wait_s = standing.wait_s
        self._now = standing.clock
        self._crew = standing.crew
        self._health = standing.health
        self._speeds = standing.speeds
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._on_outcome = on_outcome
        self._session_s = max(SHORTEST_SESSION_S, LONGEST_JOBS_A_SESSION * timeout_s)
        self._ask_from_s = self._now()
        self._hope_until_s = self._now() + self._wait_s
        self._handlers = {
            Waiting: self._waiting,
            Granted: self._granted,
            Ready: self._ready,
            Again: self._again,
            Done: self._done,
            Fault: self._fault,
            Retired: self._retired,
            Ended: self._ended,
        }

    def finished(self) -> list[BoardOutcome]:
        """Returns when every job has an outcome. Raises TargetError where no board can work for ``wait_s``."""
        while self._jobs.unfinished:
            self._hand_out()
            self._ask()
            for worker, message in self._crew.hear(self._until_next_s()):
                self._handlers[type(message)](worker, message)
            self._look_after_overdue()
            self._keep_hoping()
        self._stop_asking()
        self._speeds.report(logger)
        return self._jobs.outcomes

    # Work is handed out.

    def _hand_out(self) -> None:
        working = {worker.board for worker in self._crew.workers if worker.state in (State.IDLE, State.BUSY)}
        for worker in [worker for worker in self._crew.workers if worker.state is State.IDLE]:
            if worker.ends_s < self._now() + self._timeout_s + CHECK_S:
                self._crew.dismiss(worker)
                continue
            job = self._jobs.take(worker.board, working - {worker.board})
            if job is None:
                continue
            worker.job = job
            if self._crew.tell(worker, job.call):
                worker.state = State.BUSY
                worker.until_s = self._now() + self._timeout_s + CHECK_S
            else:
                self._retired(worker, None)

    def _ask(self) -> None:
        """Start a worker that asks for a board, if one would have something to do."""
        states = [worker.state for worker in self._crew.workers]
        coming = states.count(State.GRANTED) + states.count(State.OPENING)
        if State.ASKING in states or self._jobs.waiting <= coming or self._now() < self._ask_from_s:
            return
        self._crew.start(self._session_s)

    def _stop_asking(self) -> None:
        for worker in [w for w in self._crew.workers if w.state in (State.ASKING, State.GRANTED)]:
            self._crew.end(worker)

    def _until_next_s(self) -> float:
        """Seconds until something is due, whatever the workers say."""
        due_s = [worker.until_s for worker in self._crew.workers]
        if self._now() < self._ask_from_s:
            due_s.append(self._ask_from_s)
        return min(*due_s, self._hope_until_s, self._now() + _LOOK_S) - self._now()

    # What workers say.

    def _waiting(self, worker: Worker, message: Waiting) -> None:
        worker.said = message.reason
        if not self._hopeful():
            left_s = max(self._hope_until_s - self._now(), 0.0)
            logger.warning("%s; waiting up to %.0f s more", message.reason, left_s)

    def _granted(self, worker: Worker, message: Granted) -> None:
        worker.board = message.board
        if self._health.quarantined(message.board, self._now()):
            # Not opened, so that the tracker gives it to nobody for some seconds.
            self._crew.end(worker)
            self._ask_from_s = self._now() + ASK_AGAIN_S
            return
        worker.state = State.GRANTED
        worker.until_s = self._now() + self._health.pause_s(message.board, self._now())

    def _open(self, worker: Worker) -> None:
        worker.state = State.OPENING
        worker.until_s = self._now() + OPEN_S
        worker.ends_s = self._now() + worker.session_s
        self._crew.tell(worker, Go(self._speeds.level_us(worker.board)))

    def _ready(self, worker: Worker, message: Ready) -> None:
        worker.state = State.IDLE
        worker.until_s = _NEVER_S
        if message.note is not None:
            logger.warning("board %s: %s", worker.board, message.note)
        self._speeds.note(worker.board, message.level_us)
        logger.info("board %s joins%s", worker.board, self._speeds.describe(worker.board))

    def _again(self, worker: Worker, message: Again) -> None:
        logger.warning("board %s %s", worker.board, message.reason)
        if worker.state is State.BUSY:
            worker.until_s = self._now() + self._timeout_s + CHECK_S

    def _done(self, worker: Worker, message: Done) -> None:
        self._speeds.note(worker.board, message.level_us)
        if worker.state is State.LATE:
            logger.warning("board %s answered too late; the job was given to another", worker.board)
            self._crew.dismiss(worker)
            return
        self._health.forgive(worker.board)
        worker.state = State.IDLE
        worker.until_s = _NEVER_S
        found, job = message.outcome, worker.job
        worker.job = None
        self._finish(job, BoardOutcome(found.value, found.error, worker.board, self._speeds.scale(worker.board)))

    def _fault(self, worker: Worker, message: Fault) -> None:
        self._crew.dismiss(worker)
        if worker.state is not State.LATE:
            self._blame(worker, message.reason, message.lasting)

    def _retired(self, worker: Worker, _message: Retired | None) -> None:
        self._crew.dismiss(worker)
        if worker.job is not None:
            self._jobs.put_back(worker.job)

    def _ended(self, worker: Worker, _message: Ended) -> None:
        self._crew.dismiss(worker)
        self._ask_from_s = self._now() + ASK_AGAIN_S
        if worker.state in (State.OPENING, State.BUSY):
            self._blame(worker, "it took the worker here down with it", lasting=False)

    # What goes wrong.

    def _look_after_overdue(self) -> None:
        for worker in [worker for worker in self._crew.workers if worker.until_s <= self._now()]:
            if worker.state is State.GRANTED:
                self._open(worker)
            elif worker.state is State.BUSY:
                worker.state = State.LATE
                worker.until_s = worker.ends_s + CHECK_S
                self._blame(worker, f"no answer within {self._timeout_s:.3g} s", lasting=False)
            else:
                self._crew.end(worker)
                if worker.state is State.OPENING:
                    self._blame(worker, f"it does not open within {OPEN_S:.0f} s", lasting=False)

    def _blame(self, worker: Worker, reason: str, lasting: bool) -> None:
        now_s = self._now()
        self._health.blame(worker.board, reason, lasting, now_s)
        if self._health.quarantined(worker.board, now_s):
            left_s = self._health.pause_s(worker.board, now_s)
            what = "for good" if left_s == _NEVER_S else f"for {left_s:.0f} s"
            logger.warning("board %s: %s; it is left alone %s", worker.board, reason, what)
        else:
            logger.warning("board %s: %s", worker.board, reason)
        job, worker.job = worker.job, None
        if job is None:
            return
        given_up = self._jobs.failed(job, worker.board, reason)
        if given_up is None:
            logger.warning("job %d goes to the next free board", job.index)
            return
        logger.warning("job %d is %s", job.index, given_up.error)
        # The boards had computed right before it: the job is to blame.
        for board in job.failed_on:
            self._health.forgive(board)
        self._finish(job, given_up)

    def _finish(self, job: Job, outcome: BoardOutcome) -> None:
        self._jobs.finish(job, outcome)
        if self._on_outcome is not None:
            self._on_outcome(job.index, outcome)

    def _hopeful(self) -> bool:
        """Whether some board works, or will once its session ends."""
        return any(worker.state in (State.OPENING, State.IDLE, State.BUSY, State.LATE) for worker in self._crew.workers)

    def _keep_hoping(self) -> None:
        if self._hopeful():
            self._hope_until_s = self._now() + self._wait_s
        elif self._now() >= self._hope_until_s:
            said = [worker.said for worker in self._crew.workers if worker.said]
            reasons = "; ".join([*self._health.complaints(), *said]) or "none was given by the tracker"
            raise TargetError(
                f"no board of key {self._key!r} could work for {self._wait_s:.0f} s, and "
                f"{self._jobs.unfinished} of {len(self._jobs.outcomes)} jobs are left: {reasons}. What is done is "
                f"kept: mend it and run again"
            )
