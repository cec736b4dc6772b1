"""From a backbone to tuned kernels: the steps that every build shares, and the build of a plain backbone."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

import hapi_tvm
from hapi_tvm import recordio
from hapi_tvm.algorithms import Algorithms, Tiles, Trials
from hapi_tvm.choosing import choose, kernels_to_tune, worth_trying
from hapi_tvm.compiling import compile_design
from hapi_tvm.exits import exit_graph
from hapi_tvm.export_check import check_library
from hapi_tvm.importing import Backbone
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.attach_exits import BranchWeights
from hapi_tvm.passes.pipeline import cut
from hapi_tvm.passes.winograd import TILES
from hapi_tvm.progress import bar, stage
from hapi_tvm.records import Certificate, ExitGraph, Option, PlacedExit
from hapi_tvm.reference import logits_of
from hapi_tvm.runtime import FORMAT
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules, tune

__all__ = [
    "CompiledBackbone",
    "TunedNetwork",
    "check_answer",
    "compile_backbone",
    "export_checked",
    "manifest",
    "tuned_network",
]


@dataclass(frozen=True, slots=True)
class CompiledBackbone:
    """A backbone without exits. library: for ``hapi_tvm.load``. timings_s: seconds by stage."""

    library: pathlib.Path
    network: LoweredNetwork
    timings_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TunedNetwork:
    """A network in its final algorithms. schedules: to use, by kernel key. tiles: of what Winograd computes."""

    network: LoweredNetwork
    schedules: Mapping[str, Scheduled]
    tiles: Tiles


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
    ``timings_s`` has "lower", "tune", "choose" and "compile". Raises TargetError, and BuildError, also where the
    library computes something else than the backbone does in torch; ``library`` is not written then.
    """
    target.reach.check()
    timings_s: dict[str, float] = {}
    graph = replace(exit_graph(backbone, may_be_empty=True), candidates=())
    tuned = tuned_network(backbone, graph, {}, target, pathlib.Path(database_dir), trials, seed, timings_s)
    with stage("compile", timings_s) as note:
        compiled = compile_design(tuned.network.module, (), manifest(backbone, target), tuned.schedules, target)
        export_checked(compiled, library, backbone, tuned, target)
        note(f"{library.name}, {library.stat().st_size / 2**20:.1f} MiB")
    return CompiledBackbone(library, tuned.network, timings_s)


def export_checked(
    compiled: tvm.runtime.Executable,
    library: pathlib.Path,
    backbone: Backbone,
    tuned: TunedNetwork,
    target: Target,
) -> None:
    """Write a compiled plain backbone, once its answer to one random image is that of the reference.

    Raises BuildError, which names the kernels that compute something else, and leaves no ``library``.
    """
    with tempfile.TemporaryDirectory(prefix=".hapi-tvm-", dir=library.parent) as folder:
        unchecked = pathlib.Path(folder) / library.name
        target.reach.export(compiled, unchecked)
        check_answer(unchecked, backbone, tuned, target)
        unchecked.replace(library)


def check_answer(library: pathlib.Path, backbone: Backbone, tuned: TunedNetwork, target: Target) -> None:
    """Raise BuildError unless the end of the backbone, in a library with exits or without, answers one random
    image as the reference does; see ``export_check``."""
    image = np.random.default_rng(0).standard_normal(backbone.input_shape, dtype=np.float32)
    check_library(library, image, logits_of(backbone.module, image), tuned.network, tuned.schedules, target)


def tuned_network(
    backbone: Backbone,
    graph: ExitGraph,
    weights: Mapping[Option, BranchWeights],
    target: Target,
    database_dir: pathlib.Path,
    trials: int,
    seed: int,
    timings_s: dict[str, float],
    dump_dir: pathlib.Path | None = None,
) -> TunedNetwork:
    """The backbone with the branches of ``graph``, as tuned kernels, each convolution in its fastest algorithm.

    weights: of each option. trials: for all algorithms together; 0 neither tunes nor compares, and takes what
    is on record. dump_dir: where to write the IR after each pass. Logs and times "lower", "tune", "choose".
    """
    algorithms = _lowered(backbone, graph, weights, target, timings_s, dump_dir)
    tried = _tune(algorithms, target, database_dir, trials, seed, timings_s)
    with stage("choose", timings_s) as note:
        schedules = best_schedules(kernels_to_tune(algorithms, tried), target, database_dir)
        tiles = choose(algorithms, tried, schedules, target, database_dir, measure=trials > 0)
        network = algorithms.network(tiles)
        note(_told(tiles, len(algorithms.shapes)))
    return TunedNetwork(network, {key: schedules[key] for key in network.kernels}, tiles)


def _lowered(
    backbone: Backbone,
    graph: ExitGraph,
    weights: Mapping[Option, BranchWeights],
    target: Target,
    timings_s: dict[str, float],
    dump_dir: pathlib.Path | None,
) -> Algorithms:
    with stage("lower", timings_s) as note:
        tensors = [candidate.tensor for candidate in graph.candidates]
        pieces = cut(backbone.module, tensors, weights, target.tvm_target, target.vector_width, dump_dir)
        algorithms = Algorithms(pieces, graph, target.tvm_target, dump_dir)
        network = algorithms.direct
        calls = sum(len(chain) for chain in network.segments + network.branches)
        note(f"{calls} kernel calls, {len(network.kernels)} distinct kernels")
    return algorithms


def _tune(
    algorithms: Algorithms,
    target: Target,
    database_dir: pathlib.Path,
    trials: int,
    seed: int,
    timings_s: dict[str, float],
) -> Trials:
    """Tune the kernels of all algorithms that are worth it; returns which those are."""
    done = 0
    with stage("tune", timings_s) as note, bar("tune kernels", trials) as shown:

        def count(_trial) -> None:
            nonlocal done
            done += 1
            shown.advance()

        tried = worth_trying(algorithms, target, database_dir, measure=trials > 0)
        kernels = kernels_to_tune(algorithms, tried)
        tune(kernels, target, database_dir, trials, seed, count)
        note(f"{len(kernels)} kernels, {done} new trials")
    return tried


def _told(tiles: Tiles, shapes: int) -> str:
    """Such as "of 8 shapes of 3x3 convolutions 2 by F(2x2,3x3), 1 by F(4x4,3x3)"."""
    count = Counter(tiles.values())
    parts = [f"{count[tile]} by F({tile}x{tile},3x3)" for tile in TILES]
    return f"of {shapes} shapes of 3x3 convolutions {', '.join(parts)}"


def manifest(
    backbone: Backbone,
    target: Target,
    placed: Sequence[PlacedExit] = (),
    design_key: str = "",
    certificate: Certificate | None = None,
) -> dict[str, Any]:
    """What an artifact says of itself, as ``hapi_tvm.runtime`` reads it. design_key: of the run folder."""
    return {
        "format": FORMAT,
        "hapi_tvm": hapi_tvm.__version__,
        "tvm": tvm.__version__,
        "model": backbone.name,
        "model_hash": backbone.hash,
        "target": target.name,
        "device": target.tvm_target.kind.name,
        "needed_flags": list(target.needed_flags),
        "threads": target.threads,
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
        "certificate": None if certificate is None else recordio.to_json(certificate),
        "design_key": design_key,
    }
