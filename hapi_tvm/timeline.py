"""The order in which the pieces of a network are run to be timed in their places."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLOCK_WORDS", "TIMELINE", "Step"]

# The function that runs pieces one after the other and notes the time between them; on boards, where nobody
# could watch from outside.
TIMELINE = "timeline"
# int64 values of a time: seconds and nanoseconds, a ``struct timespec`` of a 64-bit Linux.
CLOCK_WORDS = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A call of ``function``, of one tensor: what step number ``reads`` returned, or the network's input (None)."""

    function: str
    reads: int | None = None
