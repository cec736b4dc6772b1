"""The latency table: kernels measured or predicted, segments in place, and what the virtual machine adds."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from dataclasses import replace

import tvm

from hapi_tvm.features import kernel_features
from hapi_tvm.hashing import digest
from hapi_tvm.inplace import measure_in_place
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.kernels import Kernel
from hapi_tvm.measuring import measure
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.overheads import measure_overheads
from hapi_tvm.progress import bar
from hapi_tvm.records import ExitGraph, KernelLatency, LatencyTable
from hapi_tvm.search.surrogate import Surrogate, choose_to_measure
from hapi_tvm.targets import Target
from hapi_tvm.whole_run import whole_run_us


def cost(
    network: LoweredNetwork,
    graph: ExitGraph,
    target: Target,
    database_dir: pathlib.Path,
    plain: pathlib.Path,
    schedules: Mapping[str, Scheduled],
    *,
    budget: int | None,
    needed: Collection[str] = (),
    seed: int = 0,
) -> LatencyTable:
    """Latencies of all kernels on ``target``, and of all segments and branches.

    plain: the library of the backbone without exits; its whole run sets ``LatencyTable.scale``. schedules: by
    kernel key. budget: how many kernels to measure, the others are predicted, and segments are sums; None
    measures every kernel, segment and branch. needed: keys that are measured in any case.
    """
    kernels = list(network.kernels.values())
    latencies = _kernel_latencies(kernels, target, database_dir, budget, needed, seed)
    overheads = measure_overheads(target)
    places = None
    if budget is None:
        places = measure_in_place(network, graph, schedules, target, overheads.entry_us)
    table = LatencyTable(
        target=target.name,
        threads=target.threads,
        tvm_version=tvm.__version__,
        kernels=tuple(latencies[kernel.key] for kernel in kernels),
        segments=network.segments,
        options=graph.options,
        branches=network.branches,
        segment_samples_us=() if places is None else places.segments_us,
        branch_samples_us=() if places is None else places.branches_us,
        entry_us=overheads.entry_us,
        call_us=overheads.call_us,
        gate_us=overheads.gate_us,
        schedules=schedules_hash(schedules),
    )
    summed_us = float(replace(table, segment_samples_us=(), entry_us=0.0).segment_us.sum())
    whole_us = whole_run_us(plain, network.input_shape, target) - overheads.entry_us
    return replace(table, scale=whole_us / summed_us)


def schedules_hash(schedules: Mapping[str, Scheduled]) -> str:
    """Of the schedule of every kernel; it changes when tuning, by whichever run, found a better one."""
    return digest({key: scheduled.key for key, scheduled in schedules.items()})


def _kernel_latencies(
    kernels: list[Kernel],
    target: Target,
    database_dir: pathlib.Path,
    budget: int | None,
    needed: Collection[str],
    seed: int,
) -> dict[str, KernelLatency]:
    features = [kernel_features(kernel, target) for kernel in kernels]
    chosen = set(needed)
    if budget is None or budget >= len(kernels):
        chosen |= {kernel.key for kernel in kernels}
    else:
        chosen |= {kernels[index].key for index in choose_to_measure(features, budget, seed)}
    to_measure = [kernel for kernel in kernels if kernel.key in chosen]
    with bar("measure kernels", len(to_measure)) as shown:
        found = measure(to_measure, target, database_dir, on_kernel=lambda *_: shown.advance())
    rest = [index for index, kernel in enumerate(kernels) if kernel.key not in chosen]
    if rest:
        known = [index for index, kernel in enumerate(kernels) if kernel.key in chosen]
        medians_us = [found[kernels[index].key].median_us for index in known]
        surrogate = Surrogate.fit([features[index] for index in known], medians_us, seed)
        predicted_us, sigma_us = surrogate.predict([features[index] for index in rest])
        for index, median, sigma in zip(rest, predicted_us, sigma_us, strict=True):
            kernel = kernels[index]
            found[kernel.key] = KernelLatency(kernel.key, kernel.name, float(median), float(sigma))
    return found
