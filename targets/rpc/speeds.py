"""How fast the boards of a fleet are, next to the first of them: figures of one are scaled before they meet others'."""

from __future__ import annotations

import logging

__all__ = ["Speeds"]

# A spread that is not worth a line in the log.
_QUIET_SPREAD = 1.02


class Speeds:
    """Levels are what the reference kernel takes, in microseconds. The yardstick is the first board's best one."""

    def __init__(self) -> None:
        self._levels_us: dict[str, float] = {}
        self._first: str | None = None
        self._yardstick_us = 0.0
        self._reported: dict[str, float] = {}

    def note(self, board: str, level_us: float | None) -> None:
        if level_us is None:
            return
        self._levels_us[board] = level_us
        if self._first is None:
            self._first, self._yardstick_us = board, level_us
        elif board == self._first:
            self._yardstick_us = min(self._yardstick_us, level_us)

    def level_us(self, board: str) -> float | None:
        """The last level of the board; None before its first."""
        return self._levels_us.get(board)

    def scale(self, board: str) -> float:
        """A time measured on the board, multiplied by this, is one of the yardstick's; 1.0 where nothing is known."""
        level_us = self.level_us(board)
        return 1.0 if level_us is None else self._yardstick_us / level_us

    def relative(self) -> dict[str, float]:
        """By board, its speed as a share of the yardstick's: the same factor as ``scale``."""
        return {board: self.scale(board) for board in sorted(self._levels_us)}

    def describe(self, board: str) -> str:
        level_us = self.level_us(board)
        return "" if level_us is None else f": reference kernel {level_us:.0f} us, speed {self.scale(board):.2f}"

    def report(self, logger: logging.Logger) -> None:
        """Say how far the boards are apart, when that is news."""
        speeds = {board: round(speed, 2) for board, speed in self.relative().items()}
        if speeds == self._reported or len(speeds) < 2:
            return
        self._reported = speeds
        if max(speeds.values()) > _QUIET_SPREAD * min(speeds.values()):
            told = ", ".join(f"{board} {speed:.2f}" for board, speed in speeds.items())
            logger.warning("boards differ in speed, and their figures are scaled: %s", told)
