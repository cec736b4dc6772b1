"""A job that fails, dies or hangs costs that job; the workers are this very copy of the package."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import hapi_tvm
from hapi_tvm.targets.forkserver import ForkServer

ROOT = pathlib.Path(hapi_tvm.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    server.close()


def double(value):
    return 2 * value


def sleep_then(seconds, value):
    time.sleep(seconds)
    return value


def fail():
    raise ValueError("no such tile")


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    while True:
        pass


def leave():
    os._exit(3)


def environment(name):
    return os.environ.get(name)


def loaded():
    return hapi_tvm.__file__, sys.modules.get("torch")


def parent():
    return os.getppid()


def test_outcomes_keep_the_order_of_the_arguments(server):
    order = []
    outcomes = server.map(
        sleep_then, [(0.5, "slow"), (0.0, "fast"), (0.0, "third")], 10, 2, on_outcome=lambda i, _: order.append(i)
    )
    assert [outcome.value for outcome in outcomes] == ["slow", "fast", "third"]
    assert order[-1] == 0


def test_more_jobs_than_workers(server):
    assert [o.value for o in server.map(double, [(n,) for n in range(20)], 10, 3)] == list(range(0, 40, 2))


@pytest.mark.parametrize(
    ("job", "reason"),
    [(fail, "no such tile"), (die, "SIGSEGV"), (hang, "timed out"), (leave, "status 3")],
)
def test_one_bad_job_costs_one_outcome(server, job, reason):
    (bad,) = server.map(job, [()], timeout_s=1)
    assert reason in bad.error
    assert server.map(double, [(21,)], timeout_s=10)[0].value == 42


def test_environment_reaches_the_job_only(server):
    assert server.map(environment, [("HAPI_X",)], 10, environment={"HAPI_X": "7"})[0].value == "7"
    assert server.map(environment, [("HAPI_X",)], 10)[0].value is None


def test_a_dead_server_starts_again():
    server = ForkServer()
    (first,) = server.map(parent, [()], 10)
    os.kill(first.value, signal.SIGKILL)
    time.sleep(0.2)
    (second,) = server.map(parent, [()], 10)
    assert second.error is None and second.value != first.value
    server.close()


def test_workers_load_this_copy_and_no_torch(server):
    path, torch = server.map(loaded, [()], 10)[0].value
    assert path == hapi_tvm.__file__
    assert torch is None


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """The copy comes from the script's own sys.path alone, and nothing imports the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import operator\nprint('started')\n"
        "from hapi_tvm.targets.forkserver import shared_server\n"
        "print([o.value for o in shared_server().map(operator.mul, [(6, 7), (2, 3)], 10)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["started", "[42, 6]"], done.stderr
