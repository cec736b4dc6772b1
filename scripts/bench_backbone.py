#!/usr/bin/env python3
"""hapi_tvm without exits against ONNX Runtime, OpenVINO and torch.compile, on whole classifiers.

Builds each model from an empty database (or from ``--database``), holds its numbers against ONNX Runtime,
and times all four in one process, in turns. JSON on stdout, progress on stderr. Needs the extra ``bench``.

``tune_s`` is what tuning and the choice of algorithms took, the longest over the thread counts;
``ratio_to_best`` is our time over the fastest other's; ``max_rel_err`` is that of the logits, relative to the
largest. ``--kernels FILE`` also writes, as Markdown, where each model's time goes, kernel by kernel.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir.analysis import estimate_tir_flops
from tvm.tirx import PrimFunc

import hapi_tvm as hapi
from bench_models import BENCHMARK, MODELS, Model, classifier, export_onnx, image
from bench_runtimes import environment
from hapi_tvm.backbone_build import CompiledBackbone, compile_backbone
from hapi_tvm.kernels import Kernel, buffer_shapes, kernel_key
from hapi_tvm.measuring import measure
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.progress import set_up_logging
from hapi_tvm.targets import Target

PACKAGES = ("apache-tvm", "onnxruntime", "openvino", "torch")
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Settings:
    """folder: for ONNX files and libraries. tables: Markdown of kernels is appended here, None writes none."""

    threads: tuple[int, ...]
    trials: int
    rounds: int
    folder: pathlib.Path
    database: pathlib.Path
    tables: pathlib.Path | None


def bench(models: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The whole report, as it is printed."""
    rates: dict[int, list[float]] = {threads: [] for threads in settings.threads}
    rows = {name: bench_model(MODELS[name], settings, rates) for name in models}
    return {
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "matmul_gflops": {str(threads): max(values) for threads, values in rates.items()},
        },
        "versions": {"hapi-tvm": hapi.__version__} | {name: metadata.version(name) for name in PACKAGES},
        "rounds": settings.rounds,
        "trials": settings.trials,
        "models": rows,
        "geomean_ratio": {
            str(threads): _geometric_mean(row["threads"][str(threads)]["ratio_to_best"] for row in rows.values())
            for threads in settings.threads
        },
    }


def bench_model(model: Model, settings: Settings, rates: dict[int, list[float]]) -> dict[str, Any]:
    """One entry of ``models``; adds the machine's matrix-product rates to ``rates``, in GFLOP/s by threads."""
    network, trained = classifier(model)
    onnx_file = export_onnx(network, image(model), settings.folder / f"{model.name}.onnx")
    backbone = hapi.import_model(onnx_file)
    by_threads, tune_s, errors = {}, [], []
    for threads in settings.threads:
        print(f"{model.name}, {threads} threads", file=sys.stderr)
        target = hapi.targets.llvm(threads=threads)
        library = settings.folder / f"{model.name}-{threads}.so"
        built = compile_backbone(backbone, target, library, settings.database, trials=settings.trials)
        sample = _timed_elsewhere(model, onnx_file, library, threads, settings.rounds)
        rates[threads].append(sample["matmul_gflops"])
        tune_s.append(built.timings_s["tune"] + built.timings_s["choose"])
        errors.append(sample["rel_error"]["hapi"])
        by_threads[str(threads)] = _row(sample)
        if settings.tables is not None:
            table = kernel_table(built, target, settings.database, sample)
            with settings.tables.open("a") as file:
                file.write(f"### {model.name}, threads: {threads}\n\n{table}\n\n")
    return {
        "threads": by_threads,
        "tune_s": max(tune_s),
        "max_rel_err": max(errors),
        "weights": "trained" if trained else "random",
    }


def _timed_elsewhere(
    model: Model, onnx_file: pathlib.Path, library: pathlib.Path, threads: int, rounds: int
) -> dict[str, Any]:
    """``bench_runtimes.Sample`` as a dict, from a process of its own with so many threads."""
    script = pathlib.Path(__file__).with_name("bench_runtimes.py")
    arguments = [model.name, onnx_file, library, "--threads", threads, "--rounds", rounds]
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout)


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    median_us = {runtime: timing["median_us"] for runtime, timing in sample["timings"].items()}
    best_other_us = min(value for runtime, value in median_us.items() if runtime != "hapi")
    return {
        **{f"{runtime}_us": value for runtime, value in median_us.items()},
        "ratio_to_best": median_us["hapi"] / best_other_us,
        "quartiles_us": {runtime: timing["quartiles_us"] for runtime, timing in sample["timings"].items()},
        "rel_err": sample["rel_error"],
        "torch": sample["torch"],
        "other_cores": sample["other_cores"],
    }


def kernel_table(
    built: CompiledBackbone, target: Target, database: pathlib.Path, sample: dict[str, Any]
) -> str:
    """Markdown: every distinct kernel, the one that takes most of a run first.

    Alone means call after call on the same data; in place, inside a run of the network. Rates are of the
    kernel alone, and count the operations of its algorithm; the limit is the matrix product with as many
    threads.
    """
    network = built.network
    calls = Counter(key for chain in network.segments for key in chain)
    alone = measure(list(network.kernels.values()), target, database)
    in_place_us: dict[str, float] = dict.fromkeys(calls, 0.0)
    for name, spent_us in sample["in_place_us"].items():
        if (key := _key_of(network, name)) in in_place_us:
            in_place_us[key] += spent_us
    total_us = sum(in_place_us.values())
    lines = [
        "| kernel | calls | us alone | us in place | GFLOP/s alone | of the limit | of the time |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in sorted(calls, key=lambda key: -in_place_us[key]):
        kernel, alone_us = network.kernels[key], alone[key].median_us
        gflops = estimate_tir_flops(IRModule({"main": kernel.func})) / alone_us / 1e3
        lines.append(
            f"| `{kernel.name}` {_shapes(kernel)} | {calls[key]} | {alone_us:.1f} | "
            f"{in_place_us[key] / calls[key]:.1f} | {gflops:.1f} | {gflops / sample['matmul_gflops']:.0%} | "
            f"{in_place_us[key] / total_us:.1%} |"
        )
    alone_sum_us = sum(count * alone[key].median_us for key, count in calls.items())
    whole_us = sample["timings"]["hapi"]["median_us"]
    sums = f"{calls.total()} | {alone_sum_us:.0f} | {total_us:.0f}"
    lines.append(f"| sum; a run takes {whole_us:.0f} us | {sums} | | | |")
    return "\n".join(lines)


def _key_of(network: LoweredNetwork, name: str) -> str | None:
    """The kernel behind a function of the compiled module; None for what is no kernel."""
    if name not in {var.name_hint for var in network.module.get_global_vars()}:
        return None
    function = network.module[name]
    return kernel_key(function) if isinstance(function, PrimFunc) else None


def _shapes(kernel: Kernel) -> str:
    """Its inputs and output, such as 1x4x8x8x16, 4x4x3x3x16x16, 1x4x8x8x16."""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in buffer_shapes(kernel.func))


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(BENCHMARK), metavar="MODEL")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--trials", type=int, default=256, help="tuning budget for a model and thread count")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each runtime")
    parser.add_argument("--database", type=pathlib.Path, help="of tuned kernels; a new one unless given")
    parser.add_argument("--kernels", type=pathlib.Path, metavar="FILE", help="write tables of kernels here")
    args = parser.parse_args()
    set_up_logging()
    if args.kernels is not None:
        args.kernels.write_text("")
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-bench-") as folder:
        settings = Settings(
            tuple(args.threads),
            args.trials,
            args.rounds,
            pathlib.Path(folder),
            args.database or pathlib.Path(folder) / "kernels",
            args.kernels,
        )
        print(json.dumps(bench(args.models, settings), indent=1))


if __name__ == "__main__":
    main()
