"""``hapi-tvm board`` and ``hapi-tvm targets`` as a user types them; and that nothing of them outlives its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
from click.testing import CliRunner

from hapi_tvm import board_server
from hapi_tvm.cli import main
from hapi_tvm.targets.rpc.board import open_board
from hapi_tvm.targets.rpc.tracker import request, summary
from tests.boards import KEY, board, free_port, gone, tracker, until
from tests.checkout import ROOT

PATIENCE_S = 60


@pytest.fixture(scope="module")
def at():
    with tracker() as found:
        yield found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hapi_tvm.cli", *map(str, arguments)]


@contextlib.contextmanager
def running(*words: str):
    process = subprocess.Popen(
        list(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def refused(done) -> str:
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_serve_ends_with_its_sessions(at, number):
    with running(*command("board", "serve", "--tracker", at.address, "--key", KEY)) as process:
        assert f"board '{KEY}' listens on 127.0.0.1:" in process.stdout.readline()
        until(lambda: summary(at).free.get(KEY), "the board is registered")
        session = open_board(request(at, 20.0), "cpu", session_s=60.0)
        assert session.session.get_function("rpc.test.addone")(1) == 2
        served = family(process)
        assert len(served) >= 2, "a session is a process"
        process.send_signal(number)
        until(lambda: all(map(gone, served)), "the server and its session are gone")
        assert process.wait(PATIENCE_S) == (-number if number == signal.SIGKILL else 0)
        until(lambda: KEY not in summary(at).boards, "the tracker has forgotten the board")


def test_serve_warns_that_it_runs_what_it_is_sent(at):
    with running(*command("board", "serve", "--tracker", at.address, "--key", KEY, "--host", "127.0.0.1")) as process:
        process.stdout.readline()
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert "no password and no encryption, and runs whatever it is sent" in stderr


def test_serve_says_when_its_port_is_taken(at):
    with board(at) as one:
        port = one.name.split(":")[1]
        done = subprocess.run(
            command("board", "serve", "--tracker", at.address, "--key", KEY, "--port", port),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment(),
            cwd=ROOT,
        )
    assert done.returncode == 2
    assert f"no server can listen on 127.0.0.1, ports {port} to {port}" in done.stderr


@pytest.mark.parametrize(("option", "value"), [("--tracker", "nowhere"), ("--key", "two words")])
def test_serve_refuses_malformed_words(option, value):
    options = {"--tracker": "127.0.0.1:9190", "--key": KEY, option: value}
    words = [word for pair in options.items() for word in pair]
    assert repr(value) in refused(CliRunner().invoke(main, ["board", "serve", *words]))


def test_check_prints_a_line_for_each_board(at):
    with board(at) as one, board(at) as two:
        done = CliRunner().invoke(main, ["board", "check", KEY, "--tracker", at.address])
        assert done.exit_code == 0, done.output
        for name in (one.name, two.name):
            (line,) = [line for line in done.stdout.splitlines() if name in line]
            assert "GFLOP/s" in line and "GiB" in line and "%" in line


def test_check_of_an_unknown_key_lists_the_keys(at):
    with board(at, key="other-key"):
        done = CliRunner().invoke(main, ["board", "check", "rasp4b", "--tracker", at.address])
    assert "'other-key'" in refused(done)


def test_check_without_a_tracker():
    port = free_port()
    done = CliRunner().invoke(main, ["board", "check", KEY, "--tracker", f"127.0.0.1:{port}"])
    assert f"no tracker at 127.0.0.1:{port}" in refused(done)


def test_targets_lists_families_devices_and_boards(at):
    with board(at) as one:
        done = CliRunner().invoke(main, ["targets", "--tracker", at.address])
    assert done.exit_code == 0, done.output
    for part in ("llvm", "arm", "cuda", "raspberry-pi/4b-aarch64", "arm/rk3399", "nvidia/jetson", KEY, one.name):
        assert part in done.stdout


# A shell that starts a test run in the background lets it ignore SIGINT, and its children too.
_MAPPING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["torch"] = None
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.tracker import Tracker
from tests.board_jobs import work_for
shared_fleet(Tracker("127.0.0.1", {port}, {key!r})).map(work_for, [({diary!r}, 0, 600.0)] * 2, 1000.0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_uses_boards_leaves_no_process_and_no_session(at, tmp_path, number):
    diary = tmp_path / "diary"
    program = _MAPPING.format(port=at.port, key=KEY, diary=str(diary))
    with board(at), running(sys.executable, "-c", program) as process:
        until(diary.exists, "a job is begun")
        users = family(process)
        assert len(users) >= 3, "the zygote and a worker"
        process.send_signal(number)
        until(lambda: all(map(gone, users)), "all that it started is gone")
        until(lambda: summary(at).free[KEY] == 1, "the board is free")


def test_serve_starts_again_after_a_crash(at):
    with board(at, "import os, tvm; tvm.register_global_func('test.crash', os.abort)") as one:
        session = open_board(request(at, 20.0), "cpu", session_s=60.0)
        with pytest.raises(Exception):  # noqa: B017 - of TVM's, which differ by where the connection breaks
            session.session.get_function("test.crash")()
        assert "it starts again in" in one.line()
        again = open_board(request(at, 20.0), "cpu", session_s=60.0)
        assert again.name == one.name
        assert again.session.get_function("rpc.test.addone")(1) == 2


def test_a_folder_that_is_made_while_they_are_removed_does_not_keep_the_server_up(monkeypatch):
    seen = []

    def remove():
        seen.append(len(seen))
        if len(seen) < 3:
            raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(board_server.TempDirectory, "remove_tempdirs", remove)
    board_server._remove_folders()
    assert seen == [0, 1, 2]
