#!/usr/bin/env python3
"""How much sooner two boards are through than one: servers on this machine, over loopback, each on a core of its own.

``measure``: the default schedules of the embedded example's kernels, compiled beforehand, each timed ``--copies``
times: what boards do, while this process only waits. ``tune``: the same kernels tuned with ``--trials`` candidates
from an empty database, which also searches and compiles on this machine; on one with two cores these are the
servers' cores. One board and two take turns; seconds are medians of ``--rounds``, JSON on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
from tvm.s_tir import meta_schedule as ms

import hapi_tvm as hapi
from hapi_tvm.backbone_build import tuned_network
from hapi_tvm.errors import TargetError
from hapi_tvm.exits import exit_graph
from hapi_tvm.kernels import Kernel, workload
from hapi_tvm.progress import set_up_logging
from hapi_tvm.targets import Target
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.tracker import Tracker, summary
from hapi_tvm.timing import results_in_order
from hapi_tvm.tuning import best_schedules, tune

KEY = "bench-board"
REGISTERED_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(*words: str) -> Iterator[subprocess.Popen]:
    """A Python process in the block; what it started ends with it."""
    running = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        yield running
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait()


@contextlib.contextmanager
def boards(count: int) -> Iterator[Tracker]:
    """A tracker with so many boards behind ``KEY``, each on one core; where there are fewer cores, they share."""
    tracker = Tracker("127.0.0.1", free_port(), KEY)
    cores = sorted(os.sched_getaffinity(0))
    where = ("--host", "127.0.0.1", "--port", str(tracker.port), "--port-end", str(tracker.port + 1))
    serve = ("-m", "hapi_tvm.cli", "board", "serve", "--tracker", tracker.address, "--key", KEY)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process("-m", "tvm.exec.rpc_tracker", *where))
        for index in range(count):
            server = stack.enter_context(process(*serve))
            psutil.Process(server.pid).cpu_affinity([cores[-1 - index % len(cores)]])
        wait_for(tracker, count)
        yield tracker
        shared_fleet(tracker).close()


def wait_for(tracker: Tracker, count: int) -> None:
    until_s = time.monotonic() + REGISTERED_S
    while True:
        with contextlib.suppress(TargetError):
            if len(summary(tracker).boards.get(KEY, ())) == count:
                return
        if time.monotonic() > until_s:
            raise TargetError(f"{count} boards did not register at {tracker.address} within {REGISTERED_S:.0f} s")
        time.sleep(0.1)


def example_kernels(folder: pathlib.Path) -> list[Kernel]:
    """Those of the embedded example's backbone, every convolution summed directly."""
    model = importlib.resources.files("hapi_tvm") / "data" / "resnet56_fashion_mnist.onnx"
    backbone = hapi.import_model(str(model))
    graph = replace(exit_graph(backbone), candidates=())
    tuned = tuned_network(backbone, graph, {}, hapi.targets.llvm(), folder / "kernels", 0, 0, {})
    return list(tuned.network.kernels.values())


def measure_s(kernels: list[Kernel], target: Target, copies: int, folder: pathlib.Path) -> float:
    """Seconds until every candidate is timed, from the first request for a board on."""
    schedules = best_schedules(kernels, target, folder / "kernels")
    modules = [workload(schedules[kernel.key].func) for kernel in kernels] * copies
    arguments = [ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True) for module in modules]
    built = list(target.builder().build([ms.builder.BuilderInput(module, target.tvm_target) for module in modules]))
    runner = target.runner()
    began_s = time.perf_counter()
    results = list(results_in_order(built, arguments, runner, target))
    took_s = time.perf_counter() - began_s
    failed = [str(result.error_msg) for result in results if result.error_msg is not None]
    if failed:
        raise TargetError(f"{len(failed)} of {len(results)} candidates failed, the first: {failed[0]}")
    return took_s


def tune_s(kernels: list[Kernel], target: Target, trials: int, folder: pathlib.Path) -> float:
    began_s = time.perf_counter()
    tune(kernels, target, folder / "kernels", trials, seed=0)
    return time.perf_counter() - began_s


def in_turns(rounds: int, timed_s: Callable[[Target, pathlib.Path], float]) -> dict[str, object]:
    """Medians of ``timed_s`` on one board and on two, behind a round that is not counted: it loads what all need.
    Every figure has boards and a folder of its own."""
    took_s: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(1 + rounds):
        for count, found in took_s.items():
            with boards(count) as tracker, tempfile.TemporaryDirectory() as folder:
                found.append(timed_s(hapi.targets.llvm(tracker=tracker.address, key=KEY), pathlib.Path(folder)))
            print(f"{count} boards: {found[-1]:.1f} s", file=sys.stderr)
    one_s, two_s = (statistics.median(found[1:]) for found in took_s.values())
    return {"one_s": one_s, "two_s": two_s, "ratio": two_s / one_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--kernels", type=int, help="only so many of them")
    args = parser.parse_args()
    set_up_logging()
    with tempfile.TemporaryDirectory() as folder:
        kernels = example_kernels(pathlib.Path(folder))[: args.kernels]
    report = {
        "cores": len(os.sched_getaffinity(0)),
        "kernels": len(kernels),
        "copies": args.copies,
        "trials": args.trials,
        "rounds": args.rounds,
        "measure": in_turns(args.rounds, lambda target, at: measure_s(kernels, target, args.copies, at)),
        "tune": in_turns(args.rounds, lambda target, at: tune_s(kernels, target, args.trials, at)),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
