"""One session to one board: files, tensors, the reference kernel, what the board says of itself."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest
import tvm

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc.board import open_board
from hapi_tvm.targets.rpc.check import check_boards, inspect_board
from hapi_tvm.targets.rpc.facts import Facts, ask_facts
from hapi_tvm.targets.rpc.faults import BoardFault
from hapi_tvm.targets.rpc.reference import FLOPS, SIZE, Reference, reference_library
from hapi_tvm.targets.rpc.tracker import Grant, Tracker, request
from tests.boards import KEY, board, free_port, tracker

PLAIN = f"{KEY}-plain"


@pytest.fixture(scope="module")
def at():
    with tracker() as found:
        yield found


@pytest.fixture(scope="module")
def process(at):
    with board(at) as process:
        yield process


@pytest.fixture
def session(at, process):
    return open_board(request(at, 20.0), "cpu", session_s=60.0)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return reference_library(f"{platform.machine()}-unknown-linux-gnu", str(tmp_path_factory.mktemp("reference")))


def files(session):
    """What lies in the session's folder: the board is this machine."""
    return sorted(os.listdir(str(session.session.get_function("tvm.rpc.server.workpath")("."))))


def test_an_upload_has_a_new_name_every_time_and_can_be_removed(session, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"first")
    first = session.upload(path)
    path.write_bytes(b"second, longer")
    second = session.upload(path)
    assert first != second and first.endswith("weights.bin")
    assert bytes(session.session.download(first)) == b"first"
    assert bytes(session.session.download(second)) == b"second, longer"
    assert session.largest_bytes == len(b"second, longer")
    session.remove(first)
    assert files(session) == [second]
    session.remove()
    assert files(session) == []


def test_a_tensor_comes_back_as_it_went(session):
    array = np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32)
    np.testing.assert_array_equal(session.tensor(array).numpy(), array)


def test_a_library_runs_there_after_its_file_is_gone(session, library):
    module = session.load(library)
    session.remove()
    a, b = (np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32) for seed in (1, 2))
    c = session.tensor(np.zeros_like(a))
    module["main"](session.tensor(a), session.tensor(b), c)
    np.testing.assert_allclose(c.numpy(), a @ b, atol=1e-3)


def test_the_reference_reads_what_the_kernel_takes_here(session, library):
    """The board is this machine: the same kernel, timed without RPC, is the oracle."""
    module = tvm.runtime.load_module(library)
    arguments = [tvm.runtime.tensor(np.ones((SIZE, SIZE), np.float32)) for _ in range(3)]
    here_us = 1e6 * min(module.time_evaluator("main", tvm.cpu(0), number=20, repeat=20)(*arguments).results)
    there_us = min(Reference(session, library).read_us() for _ in range(5))
    assert 0.5 < there_us / here_us < 2.0


def test_a_library_for_another_architecture_needs_its_linker(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="cannot link for aarch64: .*apt-get install gcc-aarch64-linux-gnu"):
        reference_library("aarch64-unknown-linux-gnu", str(tmp_path))


def test_a_board_of_ours_tells_what_it_is(session):
    facts = ask_facts(session)
    assert facts.triple.startswith(platform.machine())
    assert (facts.host, facts.tvm_version) == (platform.node(), tvm.__version__)
    assert facts.cores == len(os.sched_getaffinity(0))
    assert 1 << 20 < facts.free_memory_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert facts.free_disk_bytes > 0


def test_a_plain_server_tells_its_triple_alone(at):
    plain = Tracker(at.host, at.port, PLAIN)
    with board(plain, key=PLAIN, plain=True):
        session = open_board(request(plain, 20.0), "cpu", session_s=60.0)
        facts = ask_facts(session)
        assert facts == Facts(triple=facts.triple) and facts.triple.startswith(platform.machine())


def test_inspection_is_consistent(session):
    report = inspect_board(session)
    assert report.name == session.name and report.unmeasured is None
    assert 0.1 < report.speed_gflops < 1000
    assert 0 <= report.noise < 1 and -0.9 < report.drift < 9
    assert 0 < report.round_trip_ms < 1000
    assert FLOPS == 2 * SIZE**3


def test_every_board_behind_the_key_is_checked(at):
    two = Tracker(at.host, at.port, f"{KEY}-two")
    with board(two, key=two.key) as one, board(two, key=two.key) as other:
        assert [report.name for report in check_boards(two, wait_s=20.0)] == sorted([one.name, other.name])


def test_a_board_that_is_gone_does_not_open():
    with pytest.raises(BoardFault, match="it does not open"):
        open_board(Grant("127.0.0.1", free_port(), "key:0.5"), "cpu", session_s=5.0)
