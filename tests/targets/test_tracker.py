"""Every way in which an address is not that of a tracker with boards, each with its own error, within seconds."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time

import pytest

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.rpc import tracker as tracker_module
from hapi_tvm.targets.rpc.tracker import Tracker, nobody_free, parse_tracker, request, summary
from tests.boards import KEY, board, free_port, tracker

KEY_FREE = f"{KEY}-free"


@pytest.fixture(scope="module")
def at():
    with tracker() as found:
        yield found


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(tracker_module, "ANSWER_TIMEOUT_S", 0.5)


@contextlib.contextmanager
def listening(backlog=5):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server


def address_of(server, key=KEY):
    return Tracker("127.0.0.1", server.getsockname()[1], key)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:9190", ("127.0.0.1", 9190)),
        ("board-host:1", ("board-host", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address(text, found):
    tracker = parse_tracker(text, "rasp4b")
    assert (tracker.host, tracker.port, tracker.key) == (*found, "rasp4b")


@pytest.mark.parametrize("text", ["", "9190", "localhost", ":9190", "::1:9190", "localhost:"])
def test_no_address(text):
    with pytest.raises(TargetError, match="host:port|must be a number"):
        parse_tracker(text, "rasp4b")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "1.5", "١"])
def test_no_port(port):
    with pytest.raises(TargetError, match="must be a number in 1..65535"):
        parse_tracker(f"localhost:{port}", "rasp4b")


@pytest.mark.parametrize("key", ["", "two words", "a:b", " rasp4b", "line\n"])
def test_no_key(key):
    with pytest.raises(TargetError, match="must be one word without a colon"):
        parse_tracker("localhost:9190", key)


def test_nobody_behind_the_key_names_the_keys_that_are_there(at):
    with board(at, key="other-key"):
        told = nobody_free(at)
        assert f"nobody is registered under key '{KEY}'" in told and "keys there: 'other-key'" in told
        assert f"hapi-tvm board serve --tracker {at.address} --key {KEY}" in told
        assert request(at, 0.3) is None


def test_an_empty_tracker_says_so(at):
    assert "keys there: none at all" in nobody_free(Tracker(at.host, at.port, "no-such-key"))


def test_boards_are_listed_busy_and_free(at):
    free = Tracker(at.host, at.port, KEY_FREE)
    with board(free, key=KEY_FREE) as one:
        assert summary(at).boards[KEY_FREE] == (one.name,)
        grant = request(free, 5.0)
        assert grant.name == one.name
        assert summary(at).free[KEY_FREE] == 0
        assert one.name in nobody_free(free)


def test_nothing_listens():
    port = free_port()
    told = f"no tracker at 127.0.0.1:{port} .*rpc_tracker --host 127.0.0.1 --port {port}"
    with pytest.raises(TargetError, match=told):
        summary(Tracker("127.0.0.1", port, KEY))


def test_no_such_machine():
    with pytest.raises(TargetError, match="no machine is called 'no-such-host.invalid'"):
        summary(Tracker("no-such-host.invalid", 9190, KEY))


def test_a_host_that_drops_packets_is_not_waited_for_long(hurried):
    """A listener whose queue is full drops what comes, as a firewall does."""
    with listening(backlog=0) as server, contextlib.ExitStack() as full:
        for _ in range(4):
            waiting = full.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(server.getsockname())
        began_s = time.monotonic()
        with pytest.raises(TargetError, match="does a firewall let port"):
            summary(address_of(server), timeout_s=0.5)
        assert time.monotonic() - began_s < 5


def test_a_board_is_no_tracker(at):
    with board(at) as one:
        host, port = one.name.split(":")
        with pytest.raises(TargetError, match=f"what listens at {one.name} is no tracker.*closed the connection"):
            summary(Tracker(host, int(port), KEY))


def test_a_web_server_is_no_tracker(hurried):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TargetError, match="is no tracker of TVM"):
            summary(Tracker("127.0.0.1", server.server_port, KEY), timeout_s=0.5)
    finally:
        server.shutdown()
        server.server_close()


def test_a_silent_listener_is_no_tracker():
    with listening() as server:
        with pytest.raises(TargetError, match="it said nothing for 0.3 s"):
            summary(address_of(server), timeout_s=0.3)


@pytest.mark.parametrize("answer", [b"\x71\xf2\x02\x00" + b"\xff\xff\xff\xff", b"\x71\xf2\x02\x00" + b"\x03\0\0\0{{{"])
def test_a_tracker_that_answers_nonsense(answer):
    """The greeting is right, and what follows is not."""
    with listening() as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(answer))
        thread.start()
        with pytest.raises(TargetError, match="nonsense|closed the connection"):
            summary(address_of(server), timeout_s=5.0)
        thread.join()
