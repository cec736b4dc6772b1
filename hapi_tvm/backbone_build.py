"""From a backbone to tuned kernels: the steps that every build shares, and the build of a plain backbone."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

import hapi_tvm
from hapi_tvm.compiling import compile_design
from hapi_tvm.exits import exit_graph
from hapi_tvm.export_check import check_library
from hapi_tvm.importing import Backbone
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.kernels import Kernel
from hapi_tvm.network import LoweredNetwork, read_network
from hapi_tvm.passes.attach_exits import BranchWeights
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.progress import bar, stage
from hapi_tvm.records import ExitGraph, Option, PlacedExit
from hapi_tvm.reference import logits_of
from hapi_tvm.runtime import FORMAT
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules, tune

__all__ = [
    "CompiledBackbone",
    "check_answer",
    "compile_backbone",
    "export_checked",
    "lower_network",
    "manifest",
    "tuned_schedules",
]


@dataclass(frozen=True, slots=True)
class CompiledBackbone:
    """A backbone without exits. library: for ``hapi_tvm.load``. timings_s: seconds by stage."""

    library: pathlib.Path
    network: LoweredNetwork
    timings_s: Mapping[str, float] = field(default_factory=dict)


def compile_backbone(
    backbone: Backbone,
    target: Target,
    library: pathlib.Path,
    database_dir: str | os.PathLike[str],
    *,
    trials: int = 256,
    seed: int = 0,
) -> CompiledBackbone:
    """Write ``library``: the whole network, tuned, with no exit; the network needs no place for one.

    trials: tuning budget over all kernels; what ``database_dir`` already holds counts.
    ``timings_s`` has "lower", "tune" and "compile". Raises TargetError, and BuildError, also where the
    library computes something else than the backbone does in torch; ``library`` is not written then.
    """
    timings_s: dict[str, float] = {}
    graph = replace(exit_graph(backbone, may_be_empty=True), candidates=())
    network = lower_network(backbone, graph, {}, target, timings_s)
    schedules = tuned_schedules(
        list(network.kernels.values()), target, pathlib.Path(database_dir), trials, seed, timings_s
    )
    with stage("compile", timings_s) as note:
        compiled = compile_design(network.module, (), manifest(backbone, target), schedules, target)
        export_checked(compiled, library, backbone, network, schedules, target)
        note(f"{library.name}, {library.stat().st_size / 2**20:.1f} MiB")
    return CompiledBackbone(library, network, timings_s)


def export_checked(
    compiled: tvm.runtime.Executable,
    library: pathlib.Path,
    backbone: Backbone,
    network: LoweredNetwork,
    schedules: Mapping[str, Scheduled],
    target: Target,
) -> None:
    """Write a compiled plain backbone, once its answer to one random image is that of the reference.

    Raises BuildError, which names the kernels that compute something else, and leaves no ``library``.
    """
    with tempfile.TemporaryDirectory(prefix=".hapi-tvm-", dir=library.parent) as folder:
        unchecked = pathlib.Path(folder) / library.name
        compiled.export_library(str(unchecked))
        check_answer(unchecked, backbone, network, schedules, target)
        unchecked.replace(library)


def check_answer(
    library: pathlib.Path,
    backbone: Backbone,
    network: LoweredNetwork,
    schedules: Mapping[str, Scheduled],
    target: Target,
) -> None:
    """Raise BuildError unless the end of the backbone, in a library with exits or without, answers one random
    image as the reference does; see ``export_check``."""
    image = np.random.default_rng(0).standard_normal(backbone.input_shape, dtype=np.float32)
    check_library(library, image, logits_of(backbone.module, image), network, schedules, target)


def lower_network(
    backbone: Backbone,
    graph: ExitGraph,
    weights: Mapping[Option, BranchWeights],
    target: Target,
    timings_s: dict[str, float],
    dump_dir: pathlib.Path | None = None,
) -> LoweredNetwork:
    """The backbone with the branches of ``graph``, as kernels. Logs and times the stage "lower".

    weights: of each option. dump_dir: where to write the IR after each pass.
    """
    with stage("lower", timings_s) as note:
        lowered = lower_everything(
            backbone.module,
            [candidate.tensor for candidate in graph.candidates],
            weights,
            target.tvm_target,
            target.vector_width,
            dump_dir,
        )
        network = read_network(lowered, graph)
        calls = sum(len(chain) for chain in network.segments + network.branches)
        note(f"{calls} kernel calls, {len(network.kernels)} distinct kernels")
    return network


def tuned_schedules(
    kernels: Sequence[Kernel],
    target: Target,
    database_dir: pathlib.Path,
    trials: int,
    seed: int,
    timings_s: dict[str, float],
) -> dict[str, Scheduled]:
    """Tune, and return the schedules to use by kernel key. Logs and times the stage "tune"."""
    tried = 0
    with stage("tune", timings_s) as note, bar("tune kernels", trials) as shown:

        def count(_trial) -> None:
            nonlocal tried
            tried += 1
            shown.advance()

        tune(kernels, target, database_dir, trials, seed, count)
        note(f"{len(kernels)} kernels, {tried} new trials")
    return best_schedules(kernels, target, database_dir)


def manifest(
    backbone: Backbone, target: Target, placed: Sequence[PlacedExit] = (), design_key: str = ""
) -> dict[str, Any]:
    """What an artifact says of itself, as ``hapi_tvm.runtime`` reads it. design_key: of the run folder."""
    return {
        "format": FORMAT,
        "hapi_tvm": hapi_tvm.__version__,
        "tvm": tvm.__version__,
        "model": backbone.name,
        "model_hash": backbone.hash,
        "target": target.name,
        "needed_flags": list(target.needed_flags),
        "input_shape": list(backbone.input_shape),
        "classes": backbone.classes,
        "exits": [
            {
                "name": exit_.name,
                "kind": exit_.kind,
                "threshold": exit_.threshold,
                "flops_share": exit_.flops_share,
            }
            for exit_ in placed
        ],
        "certificate": None,
        "design_key": design_key,
    }
