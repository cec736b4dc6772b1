"""The rules of a fleet, without processes: who gets a job, who is left alone, when a speed has changed."""

from __future__ import annotations

import itertools
import random

import pytest

from hapi_tvm.targets.rpc.drift import COOLING_S, LOOKS, TOLERANCE, SpeedWatch
from hapi_tvm.targets.rpc.faults import FAULTS_TO_QUARANTINE, LONGEST_PAUSE_S, QUARANTINE_S, Health, brief
from hapi_tvm.targets.rpc.jobs import ATTEMPTS, BoardOutcome, Jobs
from hapi_tvm.targets.rpc.speeds import Speeds

# Jobs.


def test_jobs_are_taken_in_their_order():
    jobs = Jobs([b"a", b"b", b"c"])
    assert [jobs.take("x", ()).call for _ in range(3)] == [b"a", b"b", b"c"]
    assert jobs.take("x", ()) is None
    assert (jobs.waiting, jobs.unfinished) == (0, 3)


def test_a_job_that_failed_is_next_on_another_board_and_last_on_its_own():
    jobs = Jobs([b"a", b"b"])
    failed = jobs.take("x", {"y"})
    assert jobs.failed(failed, "x", "it died") is None
    assert jobs.take("x", {"y"}).call == b"b"
    assert jobs.take("x", {"y"}) is None
    assert jobs.take("y", {"x"}) is failed


def test_the_only_board_gets_its_failed_job_again():
    jobs = Jobs([b"a"])
    failed = jobs.take("x", ())
    jobs.failed(failed, "x", "it died")
    assert jobs.take("x", ()) is failed


def test_a_job_is_given_up_after_so_many_attempts():
    jobs = Jobs([b"a"])
    for attempt in range(ATTEMPTS):
        outcome = jobs.failed(jobs.take(f"board{attempt}", ()), f"board{attempt}", "it died")
    assert "board0, board1, board2; the last: it died" in outcome.error
    assert jobs.outcomes == [outcome] and not jobs.unfinished


def test_a_job_that_was_never_begun_is_the_next_and_has_failed_nowhere():
    jobs = Jobs([b"a", b"b"])
    job = jobs.take("x", ())
    jobs.put_back(job)
    assert jobs.take("x", ()) is job and job.failed_on == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_every_job_ends_and_is_done_once(seed):
    """Boards that fail at random: a job has one outcome, and no more attempts than it may have."""
    chance = random.Random(seed)
    names = [f"board{index}" for index in range(chance.randint(1, 4))]
    jobs = Jobs([bytes([index]) for index in range(20)])
    finished = []
    for _ in range(1000):
        name = chance.choice(names)
        job = jobs.take(name, set(names) - {name})
        if job is None:
            continue
        if chance.random() < 0.4:
            if jobs.failed(job, name, "it died") is not None:
                finished.append(job.index)
        else:
            jobs.finish(job, BoardOutcome(value=job.index))
            finished.append(job.index)
    assert sorted(finished) == list(range(20))
    assert jobs.unfinished == jobs.waiting == 0


# Health.


def test_pauses_double_up_to_a_limit_and_end_in_quarantine():
    health = Health()
    assert health.pause_s("x", 0.0) == 0.0
    pauses = []
    for _ in range(FAULTS_TO_QUARANTINE):
        health.blame("x", "it died", lasting=False, now_s=10.0)
        pauses.append(health.pause_s("x", 10.0))
    assert pauses[1] == 2 * pauses[0] <= LONGEST_PAUSE_S
    assert pauses[-1] == QUARANTINE_S
    assert health.quarantined("x", 10.0) and not health.quarantined("x", 10.0 + QUARANTINE_S)
    assert not health.quarantined("y", 10.0)


def test_a_job_well_done_makes_good_for_faults():
    health = Health()
    for _ in range(10):
        health.blame("x", "it died", lasting=False, now_s=0.0)
        health.forgive("x")
    assert health.pause_s("x", 0.0) == 0.0 and health.complaints() == []


def test_what_is_lasting_is_never_forgiven():
    health = Health()
    health.blame("x", "it computes wrong numbers", lasting=True, now_s=0.0)
    health.forgive("x")
    assert health.quarantined("x", 1e12)
    assert health.complaints() == ["x: it computes wrong numbers"]


def test_an_error_in_brief_is_its_first_line():
    error = RuntimeError("\n  Check failed: it is gone\nStack trace:\n  0: main")
    assert brief(error) == "RuntimeError: Check failed: it is gone"
    assert brief(KeyError()) == "KeyError"


# Drift.


class Processor:
    """A reference kernel on a processor whose speed is a function of time."""

    def __init__(self, time_us):
        self.now_s = 0.0
        self.time_us = time_us
        self.readings = 0

    def read_us(self):
        self.now_s += 0.03
        self.readings += 1
        return self.time_us(self.now_s)

    def sleep(self, seconds):
        self.now_s += seconds

    def watch(self, level_us=None):
        return SpeedWatch(self.read_us, level_us, clock=lambda: self.now_s, sleep=self.sleep)


def test_a_steady_board_costs_one_reading():
    processor = Processor(lambda now_s: 100.0)
    watch = processor.watch()
    before = processor.readings
    assert watch.steady() and watch.level_us == 100.0
    assert processor.readings == before + 1


def test_one_disturbed_reading_is_no_drift():
    readings = itertools.chain([100.0] * (LOOKS + 1), [300.0, 100.0], itertools.repeat(100.0))
    watch = SpeedWatch(lambda: next(readings), clock=lambda: 0.0)
    assert watch.steady()


@pytest.mark.parametrize("factor", [2.0, 0.5, TOLERANCE * 1.01])
def test_a_changed_speed_is_drift_both_ways(factor):
    processor = Processor(lambda now_s: 100.0 if now_s < 10 else 100.0 * factor)
    watch = processor.watch()
    assert watch.steady()
    processor.sleep(10)
    assert not watch.steady()
    assert watch.pace == pytest.approx(1 / factor)


def test_a_hot_board_is_waited_for_and_keeps_its_level():
    processor = Processor(lambda now_s: 200.0 if 1 < now_s < 2.5 else 100.0)
    watch = processor.watch()
    processor.sleep(1)
    assert not watch.steady()
    watch.settle()
    assert watch.level_us == 100.0 and processor.now_s >= 2.5


def test_a_board_that_stays_slow_gets_a_new_level_within_bounds():
    processor = Processor(lambda now_s: 100.0 if now_s < 1 else 200.0)
    watch = processor.watch()
    processor.sleep(1)
    began_s = processor.now_s
    watch.settle()
    assert watch.level_us == 200.0 and watch.steady()
    assert processor.now_s - began_s <= COOLING_S + 2.0


def test_a_known_level_is_kept_where_the_board_still_has_it():
    assert Processor(lambda now_s: 104.0).watch(level_us=100.0).level_us == 100.0
    assert Processor(lambda now_s: 50.0).watch(level_us=100.0).level_us == 50.0


# Speeds.


def test_times_are_scaled_to_the_first_board():
    speeds = Speeds()
    speeds.note("fast", 100.0)
    speeds.note("slow", 250.0)
    assert speeds.scale("fast") == 1.0
    # What takes 5 ms on the slow board takes 2 ms on the first.
    assert 5.0 * speeds.scale("slow") == pytest.approx(2.0)
    assert speeds.relative() == {"fast": 1.0, "slow": 0.4}


def test_a_level_that_changes_leaves_the_yardstick():
    speeds = Speeds()
    speeds.note("one", 100.0)
    speeds.note("one", 200.0)
    assert speeds.scale("one") == 0.5 and speeds.level_us("one") == 200.0


def test_without_a_reference_nothing_is_scaled():
    speeds = Speeds()
    speeds.note("one", None)
    assert speeds.scale("one") == 1.0 and speeds.level_us("one") is None and speeds.relative() == {}
