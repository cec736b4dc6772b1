"""The benchmark of boards: its form, on three kernels, and that none of its processes outlives it."""

from __future__ import annotations

import psutil

from tests.checkout import report_of


def test_the_script_times_one_board_and_two_and_leaves_no_process():
    before = set(psutil.pids())
    report = report_of("bench_boards.py", *"--rounds 1 --copies 1 --trials 3 --kernels 3".split())
    assert set(report) == {"cores", "kernels", "copies", "trials", "rounds", "measure", "tune"}
    assert report["kernels"] == 3
    for part in ("measure", "tune"):
        assert report[part]["ratio"] == report[part]["two_s"] / report[part]["one_s"] > 0
    left = [name for pid in set(psutil.pids()) - before for name in [_command_line(pid)] if "rpc_tracker" in name]
    assert not left


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
