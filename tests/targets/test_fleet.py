"""Boards that share work, with real servers: what each does wrong costs one attempt of one job, and the log says so."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from tvm import rpc

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc import dispatch
from hapi_tvm.targets.rpc.fleet import Fleet
from hapi_tvm.targets.rpc.tracker import request, summary
from tests import boards
from tests.board_jobs import accuse, begun, call, fail, read_back, work_for
from tests.boards import KEY, OWN_KERNEL, WRONG_NUMBERS, board, tracker, until

JOBS = 12
JOB_S = 0.15
TIMEOUT_S = 20.0

THROTTLED = OWN_KERNEL + """
@tvm.register_global_func("test.product")
def product(a, b, c):
    c.copyfrom(a.numpy() @ b.numpy())
    time.sleep(0.010 if os.path.exists(HOT) else 0.005)
"""
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
"""
BAD_KERNELS = """
import os, time
import tvm
tvm.register_global_func("test.crash", os.abort)
tvm.register_global_func("test.hang", lambda: time.sleep(3600))
"""
TAKEN_PORT = BAD_KERNELS + """
import errno
from hapi_tvm import board_server

start, calls = board_server.PopenRPCServerState, []

def taken_at_the_second_time(*arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        raise OSError(errno.EADDRINUSE, "Address already in use")
    return start(*arguments, **options)

board_server.PopenRPCServerState = taken_at_the_second_time
"""
OTHER_VERSION = """
import tvm
tvm.__version__ = "0.19.0"
"""


@pytest.fixture(scope="module")
def at():
    with tracker() as found:
        yield found


@pytest.fixture
def fleet(at):
    """One that takes jobs as they come: other work on this machine must not make it repeat any."""
    made = Fleet(at, wait_s=30.0, tolerance=float("inf"))
    yield made
    made.close()


@pytest.fixture
def watchful(at):
    made = Fleet(at, wait_s=30.0)
    yield made
    made.close()


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary"


def jobs(diary, count=JOBS, seconds=JOB_S):
    return [(str(diary), index, seconds) for index in range(count)]


def throttled(hot):
    """A server that is about half as fast while the file ``hot`` exists."""
    return f"HOT = {str(hot)!r}\n" + THROTTLED


def answers(outcomes):
    """The boards that did the jobs; asserts that every one of them was done right."""
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    assert [outcome.value[1] for outcome in outcomes] == [1 + index for index in range(len(outcomes))]
    assert all(outcome.value[0] == outcome.board for outcome in outcomes)
    return [outcome.board for outcome in outcomes]


def said(caplog, *parts):
    """Whether a line of the log has all the parts."""
    return any(all(part in record.getMessage() for part in parts) for record in caplog.records)


def session_of(grant):
    return rpc.connect(grant.host, grant.port, grant.match_key)


def after(outcomes_wanted, action):
    """An ``on_outcome`` that does something once, when so many jobs are done."""
    seen = []

    def note(index, outcome):
        seen.append(index)
        if len(seen) == outcomes_wanted:
            action()

    return note


def test_boards_share_the_work_evenly_and_nothing_is_done_twice(at, fleet, diary):
    with board(at) as one, board(at) as two:
        order = []
        outcomes = fleet.map(work_for, jobs(diary), TIMEOUT_S, on_outcome=lambda index, _: order.append(index))
        done_by = answers(outcomes)
        assert begun(diary) == list(range(JOBS)) == sorted(order)
        assert set(done_by) == {one.name, two.name} == set(fleet.speeds())
        assert abs(done_by.count(one.name) - done_by.count(two.name)) <= 4


def test_a_board_that_joins_later_takes_its_share(at, fleet, diary):
    with board(at):
        joined = []

        def join():
            joined.append(board(at))
            joined[0].__enter__()

        try:
            done_by = answers(fleet.map(work_for, jobs(diary, 16), TIMEOUT_S, on_outcome=after(2, join)))
        finally:
            joined[0].__exit__(None, None, None)
    assert len(set(done_by)) == 2


def test_an_error_of_the_job_itself_is_its_outcome_and_not_repeated(at, fleet, diary):
    with board(at):
        (outcome,) = fleet.map(fail, [(str(diary), 0)], TIMEOUT_S)
        assert "ValueError: no such tile" in outcome.error and "board_jobs.py" in outcome.error
        assert begun(diary) == [0]
        assert answers(fleet.map(work_for, jobs(diary, 1), TIMEOUT_S))


def test_a_killed_server_costs_one_repeat(at, fleet, diary, caplog):
    with board(at) as one, board(at) as two:
        kill = after(3, lambda: one.signal(signal.SIGKILL))
        done_by = answers(fleet.map(work_for, jobs(diary), TIMEOUT_S, on_outcome=kill))
        assert JOBS <= len(begun(diary)) <= JOBS + 1
        assert set(begun(diary)) == set(range(JOBS))
        assert two.name in done_by
        assert said(caplog, one.name, "lost") and said(caplog, "goes to the next free board")


def test_a_stopped_server_costs_one_repeat(at, fleet, diary, caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "CHECK_S", 0.5)
    with board(at) as one, board(at) as two:
        stop = after(3, lambda: one.signal(signal.SIGSTOP))
        done_by = answers(fleet.map(work_for, jobs(diary), timeout_s=1.5, on_outcome=stop))
        assert JOBS <= len(begun(diary)) <= JOBS + 1
        assert two.name in done_by
        assert said(caplog, one.name, "no answer within 1.5 s")


def test_a_board_that_computes_wrong_numbers_gets_no_job(at, fleet, diary, caplog):
    with board(at, WRONG_NUMBERS) as wrong, board(at) as right:
        assert set(answers(fleet.map(work_for, jobs(diary), TIMEOUT_S))) == {right.name}
        assert begun(diary) == list(range(JOBS))
        assert said(caplog, wrong.name, "computes wrong numbers", "left alone for good")


def test_wrong_numbers_from_the_only_board_end_with_its_name(at, diary, caplog):
    short = Fleet(at, wait_s=3.0)
    with board(at, WRONG_NUMBERS) as wrong:
        with pytest.raises(TargetError, match=f"{wrong.name}: it computes wrong numbers"):
            short.map(work_for, jobs(diary), TIMEOUT_S)
    assert not diary.exists()


def test_a_board_that_a_job_accuses_is_left_alone(at, fleet, diary, caplog):
    with board(at) as one, board(at) as two:
        outcomes = fleet.map(accuse, [(str(diary), index, one.name) for index in range(JOBS)], TIMEOUT_S)
        assert {outcome.value for outcome in outcomes} == {two.name}
        assert len(begun(diary)) <= JOBS + 1


@pytest.mark.quiet
def test_jobs_under_which_a_board_slowed_down_are_done_again(at, watchful, diary, caplog, tmp_path):
    """It is half as fast for a while, as a hot processor is."""
    hot = tmp_path / "hot"

    def heat():
        hot.touch()
        threading.Timer(2.0, hot.unlink).start()

    with board(at, throttled(hot)) as one:
        outcomes = watchful.map(work_for, jobs(diary, 4), TIMEOUT_S, on_outcome=after(2, heat))
        assert set(answers(outcomes)) == {one.name}
    assert said(caplog, one.name, "runs at 0.5", "done again")
    assert begun(diary) == [0, 1, 2, 2, 3]
    assert [outcome.scale for outcome in outcomes] == [1.0] * 4


@pytest.mark.quiet
def test_a_board_that_stays_slow_works_on_and_its_figures_are_scaled(at, watchful, diary, caplog, tmp_path):
    hot = tmp_path / "hot"
    with board(at, throttled(hot)) as one:
        outcomes = watchful.map(work_for, jobs(diary, 4), TIMEOUT_S, on_outcome=after(2, hot.touch))
        answers(outcomes)
    assert said(caplog, one.name, "runs at 0.5", "done again")
    assert begun(diary) == [0, 1, 2, 2, 3]
    scales = [outcome.scale for outcome in outcomes]
    assert scales[:2] == [1.0, 1.0] and scales[2] == pytest.approx(scales[3], rel=0.1)
    # 5 ms more on top of the product itself and the sleep.
    assert 0.45 < scales[3] < 0.7
    assert watchful.speeds() == {one.name: scales[3]}


@pytest.mark.quiet
def test_a_board_that_is_stopped_most_of_the_time_is_seen_to_be_slow(at, watchful, diary, caplog):
    with board(at) as one:
        over = threading.Event()

        def throttle():
            with one.slowed(stopped_ms=8, running_ms=2):
                over.wait(2.0)

        throttling = threading.Thread(target=throttle)
        answers(watchful.map(work_for, jobs(diary, 6, 0.4), TIMEOUT_S, on_outcome=after(2, throttling.start)))
        over.set()
        throttling.join()
    assert said(caplog, one.name, "of the speed it had", "done again")


def test_a_board_whose_disk_is_full_is_to_blame_and_not_the_job(at, fleet, diary, caplog):
    with board(at, SMALL_DISK) as small, board(at) as large:
        calls = [(str(diary), index, 2 << 20) for index in range(4)]
        outcomes = fleet.map(read_back, calls, TIMEOUT_S)
        assert {outcome.value for outcome in outcomes} == {(large.name, 2 << 20)}
        assert said(caplog, small.name)


def test_a_crashing_kernel_is_given_up_and_its_boards_come_back(at, fleet, diary):
    with board(at, BAD_KERNELS) as one:
        (outcome,) = fleet.map(call, [(str(diary), 0, "test.crash")], TIMEOUT_S)
        assert outcome.error.startswith("given up after 3 attempts") and one.name in outcome.error
        assert begun(diary) == [0, 0, 0]
    with board(at) as two:
        assert set(answers(fleet.map(work_for, jobs(diary, 2), TIMEOUT_S))) == {two.name}


def test_a_crashed_server_whose_port_is_taken_tries_again(at, fleet, diary):
    with board(at, TAKEN_PORT):
        (outcome,) = fleet.map(call, [(str(diary), 0, "test.crash")], TIMEOUT_S)
        assert outcome.error.startswith("given up after 3 attempts")
        assert begun(diary) == [0, 0, 0]


@pytest.mark.parametrize("plain", [False, True])
def test_a_hanging_kernel_blocks_its_board_until_the_session_ends(at, fleet, diary, monkeypatch, plain):
    """The board ends the session, and serves the next."""
    monkeypatch.setattr(dispatch, "SHORTEST_SESSION_S", 3.5)
    monkeypatch.setattr(dispatch, "LONGEST_JOBS_A_SESSION", 1)
    monkeypatch.setattr(dispatch, "CHECK_S", 0.3)
    with board(at, BAD_KERNELS) as one:
        (outcome,) = fleet.map(call, [(str(diary), 0, "test.hang")], timeout_s=0.7)
        assert "no answer within 0.7 s" in outcome.error
        assert set(answers(fleet.map(work_for, jobs(diary, 2), 1.0))) == {one.name}


def test_a_board_stolen_between_two_maps_is_waited_for(at, fleet, diary, caplog):
    with board(at) as one:
        answers(fleet.map(work_for, jobs(diary, 1), TIMEOUT_S))
        fleet.close()
        until(lambda: summary(at).free[KEY] == 1, "the board is free")
        stolen = [session_of(request(at, 10.0))]
        threading.Timer(4.0, stolen.clear).start()
        began_s = time.monotonic()
        assert set(answers(fleet.map(work_for, jobs(diary, 2), TIMEOUT_S))) == {one.name}
        assert time.monotonic() - began_s >= 3.9
        assert said(caplog, "all are in use", one.name)


def test_the_tracker_restarts_in_the_middle(diary, caplog):
    """The first fleet holds its board meanwhile; one that begins while the tracker is gone waits for it."""
    port = boards.free_port()
    first = tracker(port)
    found = first.__enter__()
    held, late = (Fleet(found, wait_s=60.0, tolerance=float("inf")) for _ in range(2))
    try:
        with board(found) as one:
            gone = after(3, lambda: first.__exit__(None, None, None))
            assert set(answers(held.map(work_for, jobs(diary, 6), TIMEOUT_S, on_outcome=gone))) == {one.name}
            assert begun(diary) == list(range(6))
            held.close()
            back = tracker(port)
            threading.Timer(2.0, back.__enter__).start()
            assert set(answers(late.map(work_for, jobs(diary, 2), TIMEOUT_S))) == {one.name}
            assert said(caplog, f"no tracker at 127.0.0.1:{port}", "waiting up to")
            back.__exit__(None, None, None)
    finally:
        held.close()
        late.close()


def test_no_tracker_ends_after_the_wait(diary):
    port = boards.free_port()
    lonely = Fleet(boards.Tracker("127.0.0.1", port, KEY), wait_s=2.0)
    began_s = time.monotonic()
    with pytest.raises(TargetError, match=f"for 2 s, and 3 of 3 jobs are left: no tracker at 127.0.0.1:{port}"):
        lonely.map(work_for, jobs(diary, 3), TIMEOUT_S)
    assert time.monotonic() - began_s < 30


def test_a_server_of_another_version(at, diary):
    short = Fleet(at, wait_s=3.0)
    with board(at, OTHER_VERSION) as old:
        with pytest.raises(TargetError, match=rf"{old.name}: it runs TVM 0\.19\.0, and here is .*install apache-tvm=="):
            short.map(work_for, jobs(diary, 1), TIMEOUT_S)


def test_a_plain_server_of_tvm_serves_too(at, fleet, diary):
    with board(at, plain=True) as plain:
        assert set(answers(fleet.map(work_for, jobs(diary, 3), TIMEOUT_S))) == {plain.name}
