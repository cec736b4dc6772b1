"""Bars on terminals after two seconds, one line per stage, and nothing else."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from hapi_tvm.progress import bar, set_up_logging, stage, track


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def drawn(steps, step_s, terminal):
    """What a bar over ``steps`` of ``step_s`` seconds writes."""
    clock, written = Clock(), io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=80)
    with bar("tune [conv]", steps, console=console, clock=clock) as shown:
        for _ in range(steps):
            clock.now_s += step_s
            shown.advance()
    return written.getvalue()


def test_short_work_draws_nothing():
    assert drawn(steps=10, step_s=0.19, terminal=True) == ""


def test_a_log_file_gets_no_bar():
    assert drawn(steps=10, step_s=5.0, terminal=False) == ""


def test_long_work_on_a_terminal_shows_count_description_and_time_left():
    text = drawn(steps=10, step_s=60.0, terminal=True)
    assert "tune [conv]" in text and "1/10" in text and "0:09:00 left" in text


def test_track_yields_every_item_and_closes_early():
    assert list(track(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    half = track(range(10), 10, "numbers")
    assert next(half) == 0
    half.close()


@pytest.fixture
def package_log():
    """The package's logger as it was, afterwards."""
    log = logging.getLogger("hapi_tvm")
    before = (list(log.handlers), log.level, log.propagate)
    yield log
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


def test_a_stage_logs_one_line_and_its_seconds(package_log, capsys):
    clock, timings_s = Clock(), {}
    set_up_logging()
    set_up_logging()
    with stage("tune", timings_s, clock=clock) as note:
        clock.now_s += 62.3
        note("34 kernels, 180 trials")
    with stage("search", timings_s, clock=clock):
        clock.now_s += 2.16
    package_log.debug("detail")
    captured = capsys.readouterr()
    assert captured.err == "[tune] 34 kernels, 180 trials: 62 s\n[search] done: 2.2 s\n"
    assert captured.out == ""
    assert timings_s == pytest.approx({"tune": 62.3, "search": 2.16})


def test_a_stage_that_fails_leaves_the_word_to_the_error(package_log, capsys):
    timings_s = {}
    set_up_logging()
    with pytest.raises(ValueError), stage("tune", timings_s):
        raise ValueError
    assert capsys.readouterr().err == "" and timings_s == {}


def test_verbose_logs_details(package_log, capsys):
    set_up_logging(verbose=True)
    package_log.getChild("tuning").debug("kernel 3")
    assert capsys.readouterr().err == "kernel 3\n"
