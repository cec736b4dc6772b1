"""Measure kernels as they will be compiled: raw repeats in microseconds, on disk as soon as taken."""

from __future__ import annotations

import logging
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm.s_tir import meta_schedule as ms

from hapi_tvm import jsonl
from hapi_tvm.errors import BuildError
from hapi_tvm.kernel_database import KernelDatabase, Scheduled, target_folder
from hapi_tvm.kernels import Kernel, workload
from hapi_tvm.records import KernelLatency, median_error
from hapi_tvm.targets import Target
from hapi_tvm.timing import results_in_order

__all__ = ["MIN_REPEAT_MS", "latency", "measure", "try_to_measure"]

logger = logging.getLogger(__name__)

FILE = "measurements.jsonl"
# One repeat is the mean over as many calls as fill this, so that the clock's grain does not show.
MIN_REPEAT_MS = 3
ATTEMPTS = 2


def measure(
    kernels: Sequence[Kernel],
    target: Target,
    database_dir: pathlib.Path | str,
    repeats: int = 30,
    on_kernel: Callable[[KernelLatency, int, int], None] | None = None,
) -> dict[str, KernelLatency]:
    """By kernel key: the latency of each kernel with the schedule that is in use.

    What is on disk with the same schedule and at least ``repeats`` repeats is not measured again.
    on_kernel: called with (latency, number done, number to do) after each kernel measured now.
    Raises BuildError naming the kernels that failed twice, after all others were measured.
    """
    unique = {kernel.key: kernel for kernel in kernels}
    found, failures = try_to_measure(kernels, target, database_dir, repeats, on_kernel)
    if failures:
        listed = "; ".join(f"{unique[key].name} ({key}): {reason}" for key, reason in failures.items())
        raise BuildError(
            f"{len(failures)} of {len(unique)} kernels could not be measured on {target.name}: {listed}. "
            f"Remove {target_folder(database_dir, target)} to tune them anew, or report the kernel"
        )
    return found


def try_to_measure(
    kernels: Sequence[Kernel],
    target: Target,
    database_dir: pathlib.Path | str,
    repeats: int = 30,
    on_kernel: Callable[[KernelLatency, int, int], None] | None = None,
) -> tuple[dict[str, KernelLatency], dict[str, str]]:
    """As ``measure``; beside the latencies, why kernels failed, by key, instead of an error."""
    unique = {kernel.key: kernel for kernel in kernels}
    folder = target_folder(database_dir, target)
    with jsonl.locked(folder):
        database = KernelDatabase(folder)
        scheduled = {key: database.best(kernel, target) for key, kernel in unique.items()}
        known = _known(folder / FILE, repeats)
        in_use = {key: (key, scheduled[key].key) for key in unique}
        samples = {key: known[pair] for key, pair in in_use.items() if pair in known}
        failures: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            waiting = [kernel for kernel in unique.values() if kernel.key not in samples]
            failures = {}
            _measure_all(waiting, scheduled, target, repeats, folder / FILE, samples, failures, on_kernel)
    return {key: latency(unique[key], samples[key]) for key in unique if key in samples}, failures


def latency(kernel: Kernel, samples_us: Sequence[float]) -> KernelLatency:
    """The record of a kernel that was measured: median and its standard error."""
    median_us = statistics.median(samples_us)
    return KernelLatency(kernel.key, kernel.name, median_us, median_error(samples_us), tuple(samples_us))


def _known(path: pathlib.Path, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Samples on disk by (kernel, schedule); the later line counts."""
    return {
        (line["kernel"], line["schedule"]): line["samples_us"]
        for line in jsonl.read_repaired(path, _is_measurement)
        if len(line["samples_us"]) >= repeats
    }


def _is_measurement(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not all(isinstance(value.get(key), str) for key in ("kernel", "schedule")):
        return False
    samples = value.get("samples_us")
    return (
        isinstance(samples, list)
        and bool(samples)
        and all(isinstance(sample, float) and math.isfinite(sample) and sample >= 0 for sample in samples)
    )


def _measure_all(
    kernels: Sequence[Kernel],
    scheduled: dict[str, Scheduled],
    target: Target,
    repeats: int,
    path: pathlib.Path,
    samples: dict[str, list[float]],
    failures: dict[str, str],
    on_kernel: Callable[[KernelLatency, int, int], None] | None,
) -> None:
    """Compile all in parallel, then time them; fills ``samples`` and ``failures``."""
    modules = [workload(scheduled[kernel.key].func) for kernel in kernels]
    inputs = [ms.builder.BuilderInput(module, target.tvm_target) for module in modules]
    built = target.builder().build(inputs) if inputs else []
    arguments = [ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True) for module in modules]
    results = results_in_order(built, arguments, target.runner(repeats, MIN_REPEAT_MS), target)
    for index, (kernel, result) in enumerate(zip(kernels, results, strict=True)):
        if result.error_msg is not None:
            logger.debug("kernel %s failed: %s", kernel.name, result.error_msg)
            failures[kernel.key] = str(result.error_msg)
            continue
        samples[kernel.key] = [float(seconds) * 1e6 for seconds in result.run_secs]
        jsonl.append(path, _line(kernel, scheduled[kernel.key], target, samples[kernel.key]))
        if on_kernel is not None:
            on_kernel(latency(kernel, samples[kernel.key]), index + 1, len(kernels))


def _line(kernel: Kernel, scheduled: Scheduled, target: Target, samples_us: list[float]) -> dict:
    return {
        "kernel": kernel.key,
        "name": kernel.name,
        "schedule": scheduled.key,
        "origin": scheduled.origin,
        "target": target.name,
        "threads": target.threads,
        "tvm": tvm.__version__,
        "samples_us": samples_us,
    }
