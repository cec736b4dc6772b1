"""The life of a worker process: ask the tracker for a board, hold it, run jobs on it, watch its speed.

One worker is one session to one board. It ends with the session: a board that fails is left to a worker to come.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import time
import traceback
from collections.abc import Iterator

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.forkserver import Outcome
from hapi_tvm.targets.messages import receive, send
from hapi_tvm.targets.rpc.board import Board, open_board
from hapi_tvm.targets.rpc.drift import SpeedWatch
from hapi_tvm.targets.rpc.facts import ask_facts
from hapi_tvm.targets.rpc.faults import BoardFault, brief
from hapi_tvm.targets.rpc.protocol import Again, Done, Fault, Granted, Ready, Retired, Waiting
from hapi_tvm.targets.rpc.reference import Reference
from hapi_tvm.targets.rpc.tracker import Grant, Tracker, nobody_free, queued
from hapi_tvm.targets.rpc.yardstick import Yardstick

__all__ = ["work"]

# Short, so that a person soon reads why nothing happens, and a tracker that vanished is noticed.
ASK_S = 2.0
RETRY_S = 0.5
IDLE_S = 30.0
REDOS = 1


def work(
    channel: socket.socket, tracker: Tracker, yardstick: Yardstick, tolerance: float, session_s: float, folder: str
) -> None:
    """tolerance: as ``SpeedWatch`` takes it. session_s: of the session, at most. folder: where reference kernels are
    kept, on this machine."""
    grant = _ask(channel, tracker)
    send(channel, Granted(grant.name))
    known_us = receive(channel).level_us
    try:
        bench = _Bench(open_board(grant, yardstick.device, session_s), yardstick, folder, tolerance, known_us)
        send(channel, Ready(bench.level_us, bench.note))
        while _job_came(channel):
            send(channel, bench.do(receive(channel), channel))
        send(channel, Retired())
    except BoardFault as fault:
        send(channel, Fault(str(fault), fault.lasting))
    except EOFError:
        return


def _ask(channel: socket.socket, tracker: Tracker) -> Grant:
    """The next board that is free; says why there is none yet, each time the reason changes."""
    said = ""
    while True:
        try:
            with queued(tracker) as turn:
                while (grant := turn(ASK_S)) is None:
                    said = _say_once(channel, nobody_free(tracker), said)
                return grant
        except TargetError as error:
            said = _say_once(channel, str(error), said)
            time.sleep(RETRY_S)


def _say_once(channel: socket.socket, reason: str, said: str) -> str:
    if reason != said:
        send(channel, Waiting(reason))
    return reason


def _job_came(channel: socket.socket) -> bool:
    """False where none came for ``IDLE_S``: others may need the board."""
    readable, _, _ = select.select([channel], [], [], IDLE_S)
    return bool(readable)


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is the board's fault."""
    try:
        yield
    except BoardFault:
        raise
    except Exception as error:
        raise BoardFault(f"{what}: {brief(error)}") from None


class _Bench:
    """A board at work. Raises BoardFault where the board is to blame.

    level_us: what the reference kernel takes on it; None where there is none for its architecture, and note says why.
    """

    def __init__(
        self, board: Board, yardstick: Yardstick, folder: str, tolerance: float, known_us: float | None
    ) -> None:
        self._board = board
        self._reference: Reference | None = None
        self._watch: SpeedWatch | None = None
        self.note: str | None = None
        with _blaming("it does not run the reference kernel"):
            if not board.device.exist:
                raise BoardFault(f"its TVM finds no {yardstick.device} device", lasting=True)
            try:
                library = _library_for(board, yardstick, folder)
            except TargetError as error:
                self.note = f"its speed and its numbers are not watched: {error}"
                return
            self._reference = Reference(board, library, yardstick.size, board.device)
            self._watch = SpeedWatch(self._reference.read_us, known_us, tolerance)

    @property
    def level_us(self) -> float | None:
        return None if self._watch is None else self._watch.level_us

    def do(self, call: bytes, channel: socket.socket) -> Done:
        """call: pickled (function, arguments). Done again where the board's speed changed meanwhile."""
        with _blaming("it was lost in the middle of a job"):
            outcome = self._measured(call, channel)
            self._board.remove()
        return Done(outcome, self.level_us)

    def _measured(self, call: bytes, channel: socket.socket) -> Outcome:
        for redos_left in reversed(range(REDOS + 1)):
            outcome = self._attempt(call)
            if outcome.error is not None:
                self._prove()
                break
            if self._watch is None or self._watch.steady():
                break
            what = "the job is done again" if redos_left else "its figure stands, scaled"
            send(channel, Again(f"runs at {self._watch.pace:.2f} of the speed it had: {what}"))
            self._watch.settle()
        return outcome

    def _attempt(self, call: bytes) -> Outcome:
        try:
            function, arguments = pickle.loads(call)
            value = function(self._board, *arguments)
            pickle.dumps(value)
            return Outcome(value=value)
        except BoardFault:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return Outcome(error=f"{brief(error)} ({place.filename}:{place.lineno})")

    def _prove(self) -> None:
        """After an error: a board that still takes files as large, and computes right, is not to blame."""
        probe = os.urandom(max(self._board.largest_bytes, 1))
        if bytes(self._board.session.download(self._board.write(probe, "probe"))) != probe:
            raise BoardFault(f"a file of {len(probe)} bytes does not come back as it was: is its disk full?")
        if self._reference is not None:
            self._reference.check()


def _library_for(board: Board, yardstick: Yardstick, folder: str) -> str:
    """Raises TargetError where there is no reference kernel for the board."""
    triple = ask_facts(board).triple
    if triple is None:
        raise TargetError("its server does not tell its processor; hapi-tvm board serve would")
    return yardstick.library(triple, folder)
