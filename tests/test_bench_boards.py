"""The benchmark of boards: its form, on three kernels, and that none of its processes outlives it."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil

import bench_runtimes
from tests.checkout import ROOT, SCRIPTS


def test_the_script_times_one_board_and_two_and_leaves_no_process():
    before = set(psutil.pids())
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPTS / "bench_boards.py")),
            *("--rounds", "1", "--copies", "1", "--trials", "3", "--kernels", "3"),
        ],
        env=bench_runtimes.environment(1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
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
