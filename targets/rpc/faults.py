"""Faults of boards: what one is, how long a board is left alone after it, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BoardFault", "Health", "brief"]

FIRST_PAUSE_S = 0.5
# A granted board forgets a client that has not come within some six seconds.
LONGEST_PAUSE_S = 4.0
FAULTS_TO_QUARANTINE = 3
QUARANTINE_S = 300.0
_BRIEF = 300
_ANNOUNCEMENT = "Error caught from RPC call:"


class BoardFault(Exception):
    """The board is to blame, not the job: the job goes to another board.

    A function that runs on a board may raise it. lasting: the board will not mend by itself (it computes wrong
    numbers, it has another version of TVM): it is left alone for good.
    """

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def brief(error: BaseException) -> str:
    """The error in one line: TVM appends a trace of the board's stack, and announces what a board raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(_ANNOUNCEMENT):
        lines = lines[1:]
    return f"{type(error).__name__}: {lines[0][:_BRIEF]}" if lines else type(error).__name__


@dataclass(slots=True)
class _Record:
    faults_in_a_row: int
    left_alone_until_s: float
    quarantined: bool
    reason: str


class Health:
    """What became of each board lately. Times are those of one monotonic clock, given with every call.

    After a fault a board pauses, twice as long each time; after ``FAULTS_TO_QUARANTINE`` without a job well done in
    between, it is in quarantine.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def blame(self, board: str, reason: str, lasting: bool, now_s: float) -> None:
        faults = 1 + (self._records[board].faults_in_a_row if board in self._records else 0)
        quarantined = lasting or faults >= FAULTS_TO_QUARANTINE
        pause_s = min(FIRST_PAUSE_S * 2 ** (faults - 1), LONGEST_PAUSE_S)
        if quarantined:
            pause_s = float("inf") if lasting else QUARANTINE_S
        self._records[board] = _Record(faults, now_s + pause_s, quarantined, reason)

    def forgive(self, board: str) -> None:
        """It did a job well, or its faults were the job's; what is lasting stays."""
        record = self._records.get(board)
        if record is not None and record.left_alone_until_s < float("inf"):
            del self._records[board]

    def pause_s(self, board: str, now_s: float) -> float:
        """How long it must still be left alone; 0.0 where it may work."""
        record = self._records.get(board)
        return max(record.left_alone_until_s - now_s, 0.0) if record else 0.0

    def quarantined(self, board: str, now_s: float) -> bool:
        record = self._records.get(board)
        return record is not None and record.quarantined and record.left_alone_until_s > now_s

    def complaints(self) -> list[str]:
        """For people: each board at fault, and why."""
        return [f"{board}: {record.reason}" for board, record in sorted(self._records.items())]
