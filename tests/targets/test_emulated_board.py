"""The way to an Arm board and back, on an emulated one: compiled here, uploaded, run there, held to this machine.

Skipped where no emulated board was set up, or nothing links for it here.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tvm
from tvm import relax, rpc

from hapi_tvm import targets
from hapi_tvm.errors import MissingCompiler
from tests.checkout import ROOT
from tests.early_exit import compiled
from tests.families import IMAGE_SHAPE, resnet

sys.path.insert(0, str(ROOT / "scripts"))

import emulated_board  # noqa: E402

SCRIPT = ROOT / "scripts" / "emulated_board.py"
SAMPLES = 100
TOLERANCE = 1e-4
START_TIMEOUT_S = 120
SESSION_TIMEOUT_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_for_board(tracker: rpc.TrackerSession, server: subprocess.Popen, key: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while f"server:{key}" not in {info["key"] for info in tracker.summary()["server_info"]}:
        assert server.poll() is None and time.monotonic() < deadline_s, "the emulated board did not register"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def target() -> targets.Target:
    folder = emulated_board.default_folder()
    if not emulated_board.is_ready(folder):
        pytest.skip(f"no emulated board in {folder}: `scripts/emulated_board.py setup` makes one")
    try:
        return targets.arm("127.0.0.1:9190", emulated_board.KEY, mcpu="cortex-a72")
    except MissingCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def session(target) -> Iterator[rpc.RPCSession]:
    port, key = free_port(), emulated_board.KEY
    where = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    with running(sys.executable, "-m", "tvm.exec.rpc_tracker", *where):
        tracker = connected(port)
        serve = ["serve", "--tracker", f"127.0.0.1:{port}", "--key", key, "--port", str(free_port())]
        with running(sys.executable, str(SCRIPT), *serve) as server:
            wait_for_board(tracker, server, key)
            yield tracker.request(key, session_timeout=SESSION_TIMEOUT_S)


def connected(port: int) -> rpc.TrackerSession:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return rpc.connect_tracker("127.0.0.1", port)
        assert time.monotonic() < deadline_s, "the tracker did not start"
        time.sleep(0.2)


def answers(machine: relax.VirtualMachine, device: tvm.runtime.Device, thresholds: np.ndarray):
    """Probabilities [N, K], the exits taken [N] and the confidence there [N], of ``SAMPLES`` random images."""
    random, limits = np.random.default_rng(0), tvm.runtime.tensor(thresholds, device)
    found = []
    for _ in range(SAMPLES):
        image = random.standard_normal(IMAGE_SHAPE, dtype=np.float32)
        machine.set_input("main", tvm.runtime.tensor(image, device), limits)
        machine.invoke_stateful("main")
        found.append([value.numpy() for value in machine.get_outputs("main")])
    probabilities, exits, confidence = zip(*found, strict=True)
    return np.concatenate(probabilities), np.array(exits), np.concatenate(confidence)


def chosen_thresholds(machine: relax.VirtualMachine) -> np.ndarray:
    """Each lets about half of the samples that reach it leave, and lies far from the confidence of every sample."""
    thresholds = np.full(2, np.inf, np.float32)
    for place in range(2):
        thresholds[place] = 0.0
        _, exits, confidence = answers(machine, tvm.cpu(), thresholds)
        ranked = np.sort(confidence[exits == place])
        middle = ranked[len(ranked) // 4 : 3 * len(ranked) // 4]
        widest = np.diff(middle).argmax()
        assert middle[widest + 1] - middle[widest] > 10 * TOLERANCE
        thresholds[place] = middle[widest : widest + 2].mean()
    return thresholds


def test_a_resnet_20_with_exits_answers_as_it_does_here(session, target, tmp_path):
    """Three blocks a stage and 16 channels are a ResNet-20."""
    model, host = resnet(blocks=3, width=16), targets.llvm()
    here = relax.VirtualMachine(compiled(model, host, tmp_path), tvm.cpu())
    library = tmp_path / "model.so"
    target.export(compiled(model, target, tmp_path), library)
    session.upload(str(library))
    there = relax.VirtualMachine(session.load_module(library.name), session.cpu())

    thresholds = chosen_thresholds(here)
    expected, exits, _ = answers(here, tvm.cpu(), thresholds)
    found, taken, _ = answers(there, session.cpu(), thresholds)
    assert set(exits) == {0, 1, 2}
    np.testing.assert_array_equal(taken, exits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_the_board_is_another_machine(session):
    triple = session.get_function("tvm.codegen.llvm.GetDefaultTargetTriple")()
    assert str(triple).startswith("aarch64")
