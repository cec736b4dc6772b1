"""The small job is built while boards die, hang and lie, and the tracker restarts."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import replace

import pytest

import hapi_tvm as hapi
from hapi_tvm.report import read_report
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.jobs import Jobs
from hapi_tvm.targets.rpc.runner import FleetRunner
from tests import boards
from tests.boards import KEY, WRONG_NUMBERS, board

TRIALS = 16
TIMEOUT_S = 8.0
TRACKER_AWAY_S = 3.0


@pytest.fixture
def at_outcomes(monkeypatch):
    """A dict to fill: what to do once so many candidates have been timed."""
    actions, timed = {}, []
    run, finish = FleetRunner.run, Jobs.finish

    def run_impatiently(runner, inputs):
        runner.timeout_s = TIMEOUT_S
        return run(runner, inputs)

    def finish_and_act(jobs, job, outcome):
        finish(jobs, job, outcome)
        timed.append(outcome)
        actions.pop(len(timed), lambda: None)()

    monkeypatch.setattr(FleetRunner, "run", run_impatiently)
    monkeypatch.setattr(Jobs, "finish", finish_and_act)
    return actions


@pytest.fixture
def tracker_to_restart():
    """The tracker, and what stops it; it is back after ``TRACKER_AWAY_S``."""
    port = boards.free_port()
    with contextlib.ExitStack() as second:
        first = boards.tracker(port)
        found = first.__enter__()
        back = threading.Timer(TRACKER_AWAY_S, lambda: second.enter_context(boards.tracker(port)))

        def restart():
            first.__exit__(None, None, None)
            back.start()

        yield found, restart
        back.join()


def test_the_build_ends_right_and_each_fault_costs_one_measurement(
    unbuilt, tracker_to_restart, at_outcomes, tmp_path, caplog, monkeypatch
):
    job = replace(unbuilt, run_dir=tmp_path / "run", database_dir=tmp_path / "database")
    tracker, restart = tracker_to_restart
    # Other work on this machine must not make the fleet repeat anything.
    monkeypatch.setattr(shared_fleet(tracker)._standing.crew, "_tolerance", float("inf"))
    with board(tracker) as dies, board(tracker) as hangs, board(tracker, WRONG_NUMBERS) as lies, board(tracker):
        at_outcomes[2] = lambda: dies.signal(signal.SIGKILL)
        at_outcomes[6] = lambda: hangs.signal(signal.SIGSTOP)
        at_outcomes[10] = restart
        with caplog.at_level("INFO", logger="hapi_tvm"):
            artifact = job.build(target=hapi.targets.llvm(tracker=tracker.address, key=KEY), trials=TRIALS)
        shared_fleet(tracker).close()
    assert not at_outcomes, "every fault happened"
    said = [record.getMessage() for record in caplog.records]
    assert any(dies.name in line and "lost" in line for line in said)
    assert any(hangs.name in line and "no answer within" in line for line in said)
    assert any(lies.name in line and "computes wrong numbers" in line for line in said)
    assert sum("goes to the next free board" in line for line in said) <= 2
    assert not any("given up" in line for line in said)
    verified = read_report(job.run_dir)["verification"]
    assert verified["same_exit"] == verified["same_label"] == verified["samples"] > 0
    assert artifact.manifest["target"].endswith(f"key={KEY}")
