"""A board's speed, watched through a reference kernel before and after every job.

A processor that grows hot slows down, and a figure taken meanwhile belongs to no speed. So a job counts only if the
reference took the same time before and after it; if not, the job is done again once the board is steady.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SpeedWatch"]

TOLERANCE = 1.15
# A second look before a board is called drifted: single readings are disturbed by whatever else runs.
LOOKS = 3
FIRST_PAUSE_S = 0.25
COOLING_S = 3.0


class SpeedWatch:
    """level_us: what the reference takes while the board is as it was; the fastest of ``LOOKS`` readings unless given.

    read_us: takes one reading. tolerance: how far two readings of one speed may be apart, as a ratio. clock, sleep:
    replaced in tests.
    """

    def __init__(
        self,
        read_us: Callable[[], float],
        level_us: float | None = None,
        tolerance: float = TOLERANCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read_us = read_us
        self._tolerance = tolerance
        self._clock = clock
        self._sleep = sleep
        self.level_us = min(read_us() for _ in range(LOOKS)) if level_us is None else level_us
        self.reading_us = self.level_us
        self.settle()

    def steady(self) -> bool:
        """Whether one of ``LOOKS`` readings is near the level."""
        for _ in range(LOOKS):
            self.reading_us = self._read_us()
            if self._near():
                # What else runs on a board only slows: the fastest reading is nearest to its speed.
                self.level_us = min(self.level_us, self.reading_us)
                return True
        return False

    def settle(self) -> None:
        """Wait until the board is back at its level; after ``COOLING_S``, what it does now is its level."""
        until_s = self._clock() + COOLING_S
        pause_s = FIRST_PAUSE_S
        while not self.steady():
            if self._clock() + pause_s > until_s:
                self.level_us = self.reading_us
                return
            self._sleep(pause_s)
            pause_s *= 2

    def _near(self) -> bool:
        slower_us, faster_us = max(self.reading_us, self.level_us), min(self.reading_us, self.level_us)
        return slower_us <= self._tolerance * faster_us

    @property
    def pace(self) -> float:
        """The board's speed in the last reading, as a share of its level's; 0.5 is half as fast."""
        return self.level_us / self.reading_us
