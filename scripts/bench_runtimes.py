#!/usr/bin/env python3
"""Time one model in four runtimes, in one process and in turns: a part of ``bench_backbone.py``, which starts it.

Needs the extra ``bench``. The thread pools take their size from the environment when they start, so that
every thread count gets a process of its own. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import psutil

__all__ = [
    "Sample",
    "Timing",
    "environment",
    "logits",
    "matmul_gflops",
    "relative_error",
    "time_in_place",
    "time_in_turns",
    "wait_until_quiet",
]

TURN_MS = 20.0  # a turn repeats short calls until it lasts so long, after half of that without timing
QUIET_MS = 2.0
QUIET_LIMIT_MS = 300.0
MATMUL_SIZES = (512, 768, 1024)
MATMUL_REPEATS = 15


def environment(threads: int) -> dict[str, str]:
    """What a process that times with so many threads must be started with."""
    names = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | {name: str(threads) for name in names}


@dataclass(frozen=True, slots=True)
class Timing:
    """Over the turns, in microseconds: median, and the first and third quartile."""

    median_us: float
    quartiles_us: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One process's result. rel_error: of each runtime's answer against ONNX Runtime's.

    torch: "inductor", or "eager" where that does not work here. matmul_gflops: of this machine, in this process.
    other_cores: how many cores other processes kept busy meanwhile, on average; above a few hundredths the
    times say little. in_place_us: by function of the compiled network, all its calls in one run of it.
    """

    timings: Mapping[str, Timing]
    rel_error: Mapping[str, float]
    torch: str
    matmul_gflops: float
    other_cores: float
    in_place_us: Mapping[str, float]


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    turn_ms: float = TURN_MS,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Median and quartiles of each call over ``rounds`` turns, in microseconds.

    A round gives every call one turn, in an order drawn anew. A turn waits until the threads of the one
    before are asleep, calls for half of ``turn_ms`` without timing, so that its own threads and cache lines
    are back, and then takes the mean over as many calls as fill ``turn_ms``.
    """
    repeats = {name: _calls_that_fill(call, turn_ms, clock) for name, call in calls.items()}
    samples_us: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffler = random.Random(seed)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            wait_until_quiet()
            for _ in range(1 + repeats[name] // 2):
                calls[name]()
            began_s = clock()
            for _ in range(repeats[name]):
                calls[name]()
            samples_us[name].append(1e6 * (clock() - began_s) / repeats[name])
    return {name: _summary(values) for name, values in samples_us.items()}


def _calls_that_fill(call: Callable[[], object], turn_ms: float, clock: Callable[[], float]) -> int:
    durations_s = []
    for _ in range(5):
        began_s = clock()
        call()
        durations_s.append(clock() - began_s)
    return max(1, round(turn_ms / 1e3 / max(1e-7, min(durations_s))))


def _summary(samples_us: list[float]) -> Timing:
    first, median, third = np.quantile(samples_us, (0.25, 0.5, 0.75))
    return Timing(float(median), (float(first), float(third)))


def wait_until_quiet(
    clock: Callable[[], float] = time.perf_counter,
    computed: Callable[[], float] = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sleep until no thread of this process computes; idle workers spin for up to tens of milliseconds.

    computed: processor seconds of this process so far.
    """
    deadline_s = clock() + QUIET_LIMIT_MS / 1e3
    while clock() < deadline_s:
        used_s = computed()
        sleep(QUIET_MS / 1e3)
        if computed() - used_s < 0.1 * QUIET_MS / 1e3:
            return


def logits(probabilities: np.ndarray) -> np.ndarray:
    """The logits that a softmax made ``probabilities`` [1, K] of, centred. float64.

    A softmax hides what it saturates; errors are looked for before it.
    """
    log = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    return log - log.mean()


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of the logits behind two answers, over the reference's largest; NaN stays."""
    expected = logits(reference)
    return float(np.abs(logits(found) - expected).max() / np.abs(expected).max())


def matmul_gflops(threads: int) -> float:
    """The best rate of torch's float32 matrix product here, over a few square sizes: the limit of a kernel."""
    import torch

    torch.set_num_threads(threads)
    best = 0.0
    for size in MATMUL_SIZES:
        left, right, out = (torch.ones(size, size) for _ in range(3))
        torch.mm(left, right, out=out)
        durations_s = []
        for _ in range(MATMUL_REPEATS):
            began_s = time.perf_counter()
            torch.mm(left, right, out=out)
            durations_s.append(time.perf_counter() - began_s)
        best = max(best, 2 * size**3 / statistics.median(durations_s) / 1e9)
    return best


def other_cores() -> Callable[[], float]:
    """A function that says how many cores other processes have kept busy since this call."""

    def busy_s() -> float:
        times = psutil.cpu_times()
        everyone_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return everyone_s - time.process_time()

    began_s, busy_before_s = time.perf_counter(), busy_s()
    return lambda: (busy_s() - busy_before_s) / (time.perf_counter() - began_s)


def time_in_place(library: pathlib.Path, pixels: np.ndarray, runs: int) -> dict[str, float]:
    """Microseconds that each function takes inside one run, by name, its calls added; medians over ``runs``.

    Here a kernel finds its weights and inputs where the kernels before have left them, so it may take longer
    than alone. Watching adds one to three microseconds to a call.
    """
    import tvm
    import tvm_ffi
    from tvm.relax import VirtualMachine

    machine = VirtualMachine(tvm_ffi.load_module(str(library)), tvm.cpu())
    main, entry = machine["main"], tvm.runtime.tensor(pixels)
    main(entry)
    began_s = 0.0
    spent_us: list[Counter[str]] = []

    def watch(_function, name: str, before: bool, _result, *_arguments) -> int:
        nonlocal began_s
        if before:
            began_s = time.perf_counter()
        else:
            spent_us[-1][name] += 1e6 * (time.perf_counter() - began_s)
        return 0  # go on

    machine.set_instrument(watch)
    for _ in range(runs):
        spent_us.append(Counter())
        main(entry)
    return {name: statistics.median(run[name] for run in spent_us) for name in spent_us[0]}


Answer = Callable[[], np.ndarray]
Runtime = tuple[Callable[[], object], Answer]  # what is timed; and the same, with the probabilities [1, K]


def hapi_runtime(library: pathlib.Path, pixels: np.ndarray) -> Runtime:
    import hapi_tvm

    artifact = hapi_tvm.load(library)
    inputs = artifact.prepare(pixels)
    return lambda: artifact.run(*inputs), lambda: artifact.run(*inputs)[0].numpy()


def onnxruntime_runtime(model: pathlib.Path, pixels: np.ndarray, threads: int) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, pixels)
    result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(session.get_outputs()[0].shape, np.float32)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, result)

    def answer() -> np.ndarray:
        session.run_with_iobinding(binding)
        return result.numpy()

    return lambda: session.run_with_iobinding(binding), answer


def openvino_runtime(model: pathlib.Path, pixels: np.ndarray, threads: int) -> Runtime:
    """In float32: left to itself, OpenVINO takes bfloat16 where the processor has it."""
    import openvino

    compiled = openvino.Core().compile_model(
        str(model),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))

    def answer() -> np.ndarray:
        request.infer()
        return np.array(request.get_output_tensor().data)

    return lambda: request.infer(share_outputs=True), answer


def torch_runtime(name: str, pixels: np.ndarray, threads: int) -> tuple[Runtime, str]:
    """``torch.compile`` with frozen weights; "eager" where there is no C++ compiler for it."""
    import torch

    from bench_models import MODELS, classifier

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    network, _ = classifier(MODELS[name])
    example = torch.from_numpy(pixels)
    compiled, kind = torch.compile(network), "inductor"
    with torch.inference_mode():
        try:
            compiled(example)
        except Exception as error:  # a missing compiler has several exception types
            compiled, kind = network, "eager"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"torch.compile does not work here ({reason}); torch runs eagerly", file=sys.stderr)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return compiled(example)

    return (call, lambda: call().numpy()), kind


def measure(name: str, model: pathlib.Path, library: pathlib.Path, threads: int, rounds: int) -> Sample:
    """Check the four answers against each other, then time them in turns."""
    from bench_models import MODELS, image

    pixels = image(MODELS[name]).numpy()
    # First, while no other runtime has threads.
    gflops = matmul_gflops(threads)
    torch_calls, kind = torch_runtime(name, pixels, threads)
    runtimes = {
        "hapi": hapi_runtime(library, pixels),
        "onnxruntime": onnxruntime_runtime(model, pixels, threads),
        "openvino": openvino_runtime(model, pixels, threads),
        "torch": torch_calls,
    }
    answers = {runtime: answer() for runtime, (_, answer) in runtimes.items()}
    errors = {
        runtime: relative_error(answers[runtime], answers["onnxruntime"])
        for runtime in answers
        if runtime != "onnxruntime"
    }
    busy = other_cores()
    timings = time_in_turns({runtime: call for runtime, (call, _) in runtimes.items()}, rounds)
    return Sample(timings, errors, kind, gflops, busy(), time_in_place(library, pixels, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of bench_models.MODELS")
    parser.add_argument("model", type=pathlib.Path, help="its ONNX file")
    parser.add_argument("library", type=pathlib.Path, help="what hapi_tvm compiled of it")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(asdict(measure(args.name, args.model, args.library, args.threads, args.rounds))))


if __name__ == "__main__":
    main()
