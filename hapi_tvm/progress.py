"""What a person sees while a build runs: one log line per stage, and a bar where it takes a while.

Everything goes to stderr. Bars exist on a terminal only, appear once the work has taken two seconds,
and vanish when it is done; a log file gets the stage lines alone.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

__all__ = ["Bar", "StageNote", "bar", "set_up_logging", "stage", "track"]

T = TypeVar("T")
Clock = Callable[[], float]

_PATIENCE_S = 2.0
_LOG = logging.getLogger("hapi_tvm")


class _TimeLeft(ProgressColumn):
    """From the mean pace since the start: the steps of one bar are alike, and it knows from step one."""

    def render(self, task: Task) -> Text:
        left_s = (task.elapsed or 0.0) * (task.total - task.completed) / task.completed
        return Text(f"{timedelta(seconds=round(left_s))} left")


class Bar:
    """A counter that draws itself once the work has lasted ``_PATIENCE_S``. Made by ``bar``."""

    def __init__(self, description: str, total: int, console: Console, clock: Clock):
        self._description = description
        self._total = total
        self._console = console
        self._clock = clock
        self._started_s = clock()
        self._done = 0
        self._progress: Progress | None = None

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done)
        elif self._console.is_terminal and self._clock() - self._started_s >= _PATIENCE_S:
            self._draw()

    def _draw(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _TimeLeft(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True, get_time=self._clock)
        task = self._progress.add_task(self._description, total=self._total)
        self._progress.tasks[0].start_time = self._started_s
        self._progress.update(task, completed=self._done)
        self._progress.start()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def bar(
    description: str, total: int, *, console: Console | None = None, clock: Clock = time.monotonic
) -> Iterator[Bar]:
    """A bar over ``total`` steps: ``with bar("tune", 180) as tuned: tuned.advance()``.

    console: where to draw; stderr unless given.
    """
    shown = Bar(description, total, console or Console(stderr=True), clock)
    try:
        yield shown
    finally:
        shown.close()


def track(iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
    """The items of ``iterable``, with a bar over them."""
    with bar(description, total) as shown:
        for item in iterable:
            yield item
            shown.advance()


class StageNote:
    """What a stage has to say for itself: ``note("34 kernels, 180 trials")``; the last call counts."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text = text


@contextmanager
def stage(
    name: str, timings_s: dict[str, float] | None = None, *, clock: Clock = time.monotonic
) -> Iterator[StageNote]:
    """Time a stage and log one line when it ends: ``[tune] 34 kernels, 180 trials: 62 s``.

    timings_s: receives the seconds under ``name`` (``report.json`` shows them). A stage that raises
    logs nothing: the error speaks.
    """
    started_s = clock()
    note = StageNote()
    yield note
    elapsed_s = clock() - started_s
    if timings_s is not None:
        timings_s[name] = elapsed_s
    _LOG.info("[%s] %s: %s", name, note.text or "done", _seconds(elapsed_s))


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.1f} s" if elapsed_s < 10 else f"{elapsed_s:.0f} s"


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is now: a live bar replaces it, so that lines go above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def set_up_logging(verbose: bool = False) -> None:
    """Send this package's log to stderr: stage lines, with ``verbose`` the details too.

    For the command line; a library user configures ``logging.getLogger("hapi_tvm")`` as they like.
    Calling it again changes the level only.
    """
    _LOG.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in _LOG.handlers):
        _LOG.addHandler(_StderrHandler())
        _LOG.propagate = False
