"""What a worker and the fleet that started it say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from hapi_tvm.targets.forkserver import Outcome

__all__ = ["Again", "Done", "Fault", "Go", "Granted", "Ready", "Retired", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """No board yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Granted:
    """The tracker gave the worker a board; it opens that when it gets a ``Go``."""

    board: str


@dataclass(frozen=True, slots=True)
class Go:
    """level_us: what the reference kernel took on that board before; None where it never ran there."""

    level_us: float | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The session is open and the board computes right. level_us: as in ``Done``."""

    level_us: float | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Again:
    """The job is being done again, for a reason; its time starts anew."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """level_us: what the reference kernel takes on the board; None where there is none for it."""

    outcome: Outcome
    level_us: float | None


@dataclass(frozen=True, slots=True)
class Fault:
    """The board is at fault, and the worker ends."""

    reason: str
    lasting: bool


@dataclass(frozen=True, slots=True)
class Retired:
    """The worker gave its board back since it had nothing to do; a job sent meanwhile was not begun."""
