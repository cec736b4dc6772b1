#!/usr/bin/env python3
"""What cutting costs: a classifier cut at all its candidates, with no branch, against the same one uncut.

Both are lowered apart from each other, with the algorithms and schedules that tuning chose for the uncut one.
The cut module's ``main`` is that of a design with an exit at each candidate and no branch: at each cut it asks a flag
that is never set, and goes on. Each thread count gets a process, which checks that both answer the same and times them
in turns. JSON on stdout, progress on stderr.

``ratio`` is the cut module's time over the uncut one's, of the medians; ``kernels_differ`` counts the
kernels that only one of them calls: 0 where no cut splits a kernel. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, te

import hapi_tvm as hapi
from bench_models import MODELS, Model, classifier, export_onnx, image
from bench_runtimes import environment, other_cores, time_in_turns
from hapi_tvm.algorithms import Algorithms, Tiles
from hapi_tvm.backbone_build import manifest, tuned_network
from hapi_tvm.compiling import compile_design, compile_module
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import Backbone
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes import pipeline
from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.passes.cut_segments import segment_name
from hapi_tvm.progress import set_up_logging
from hapi_tvm.records import ExitGraph
from hapi_tvm.runtime import Artifact
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules


@dataclass(frozen=True, slots=True)
class Pair:
    """Two libraries of one network, for ``hapi_tvm.load``. kernels_differ: calls that only one of them makes."""

    uncut: pathlib.Path
    cut: pathlib.Path
    cuts: int
    kernel_calls: int
    kernels_differ: int


def build(backbone: Backbone, target: Target, folder: pathlib.Path, database: pathlib.Path, trials: int) -> Pair:
    """trials: tuning budget over all kernels."""
    graph = replace(exit_graph(backbone), kinds=())
    tuned = tuned_network(backbone, replace(graph, candidates=()), {}, target, database, trials, 0, {})
    uncut = tuned.network
    cut = _cut_network(backbone, graph, tuned.tiles, target)
    schedules = best_schedules((cut.kernels | uncut.kernels).values(), target, database)

    about = manifest(backbone, target)
    chained = AttachManifest(json.dumps(about))(routed(cut.module, len(cut.segments)))
    calls = {"cut": _calls(cut), "uncut": _calls(uncut)}
    differ = (calls["cut"] - calls["uncut"]) + (calls["uncut"] - calls["cut"])
    pair = Pair(
        folder / f"uncut-{target.threads}.so",
        folder / f"cut-{target.threads}.so",
        len(graph.candidates),
        calls["uncut"].total(),
        differ.total(),
    )
    compile_design(uncut.module, (), about, schedules, target).export_library(str(pair.uncut))
    compile_module(chained, schedules, target).export_library(str(pair.cut))
    return pair


def routed(lowered: tvm.IRModule, segments: int) -> tvm.IRModule:
    """``lowered`` with a ``main`` as ``Route`` makes it, but for the branches: at each cut it asks one flag, which is
    computed once and never set, and behind which lies an answer of zeros. It takes an image alone."""
    names = [segment_name(index) for index in range(segments)]
    kernels = {var: f for var, f in lowered.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    builder = relax.BlockBuilder(tvm.IRModule(kernels, attrs=lowered.attrs))
    chain = [builder.add_func(lowered[name], name) for name in names]
    x = relax.Var("x", lowered[names[0]].params[0].ty)
    flag = builder.add_func(_flag([int(extent) for extent in x.ty.shape]), "flag")
    verdict = relax.TensorType((), "bool")
    fires = relax.Var("fires", verdict)
    shape = [int(extent) for extent in lowered[names[-1]].ret_ty.fields[0].shape]
    zeros = relax.Tuple(
        [relax.const(np.zeros(shape, "float32")), relax.const(0, "int32"), relax.const(np.zeros(1, "float32"))]
    )
    answer = relax.TupleType([zeros.fields[0].ty, zeros.fields[1].ty, zeros.fields[2].ty])

    def sequence(bindings: list[relax.Binding], result: relax.Expr) -> relax.SeqExpr:
        value = relax.Var("answer", answer)
        return relax.SeqExpr([relax.BindingBlock([*bindings, relax.VarBinding(value, result)])], value)

    def rest(index: int, entry: relax.Var, bindings: list[relax.Binding]) -> relax.SeqExpr:
        tensor = relax.Var("tensor", lowered[names[index]].ret_ty)
        bindings = [*bindings, relax.VarBinding(tensor, relax.Call(chain[index], [entry]))]
        if index == segments - 1:
            fields = [relax.TupleGetItem(tensor, field) for field in (0, 1)]
            return sequence(bindings, relax.Tuple([fields[0], relax.const(0, "int32"), fields[1]]))
        return sequence(bindings, relax.If(fires, sequence([], zeros), rest(index + 1, tensor, [])))

    asked = relax.VarBinding(fires, relax.call_tir(flag, [x], out_ty=verdict))
    builder.add_func(relax.Function([x], rest(0, x, [asked]), answer), "main")
    return relax.transform.Normalize()(builder.finalize())


def _flag(shape: list[int]) -> tvm.tirx.PrimFunc:
    """Whether the first value of an image is so large as no image's is."""
    x = te.placeholder(shape, "float32", "x")
    fires = te.compute((), lambda: x[tuple(0 for _ in shape)] >= tvm.tirx.const(1e30, "float32"), "fires")
    return te.create_prim_func([x, fires]).without_attr("global_symbol")


def _cut_network(backbone: Backbone, graph: ExitGraph, tiles: Tiles, target: Target) -> LoweredNetwork:
    tensors = [candidate.tensor for candidate in graph.candidates]
    pieces = pipeline.cut(backbone.module, tensors, {}, target.tvm_target, target.vector_width)
    return Algorithms(pieces, graph, target.tvm_target).network(tiles)


def _calls(network: LoweredNetwork) -> Counter[str]:
    return Counter(key for chain in network.segments for key in chain)


def time_pair(pair: Pair, pixels: np.ndarray, rounds: int) -> dict[str, Any]:
    """One entry of ``threads``; for a process that was started with ``bench_runtimes.environment``."""
    artifacts = {"uncut": hapi.load(pair.uncut), "cut": hapi.load(pair.cut)}
    answers = [artifact.predict(pixels).probabilities for artifact in artifacts.values()]
    calls = {name: _call(artifact, pixels) for name, artifact in artifacts.items()}
    busy = other_cores()
    timings = time_in_turns(calls, rounds)
    return {
        **{f"{name}_us": asdict(timing) for name, timing in timings.items()},
        "ratio": timings["cut"].median_us / timings["uncut"].median_us,
        "max_abs_diff": float(np.abs(answers[0] - answers[1]).max()),
        "other_cores": busy(),
    }


def _call(artifact: Artifact, pixels: np.ndarray) -> Callable[[], object]:
    inputs = artifact.prepare(pixels)
    return lambda: artifact.run(*inputs)


def bench(model: Model, threads: list[int], rounds: int, trials: int, folder: pathlib.Path) -> dict[str, Any]:
    """The whole report, as it is printed."""
    network, _ = classifier(model)
    backbone = hapi.import_model(export_onnx(network, image(model), folder / f"{model.name}.onnx"))
    rows, pairs = {}, []
    for count in threads:
        pair = build(backbone, hapi.targets.llvm(threads=count), folder, folder / "kernels", trials)
        os.environ.update(environment(count))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[str(count)] = pool.apply(time_pair, (pair, image(model).numpy(), rounds))
        pairs.append(pair)
    return {
        "model": model.name,
        "cuts": pairs[0].cuts,
        "kernel_calls": pairs[0].kernel_calls,
        "kernels_differ": max(pair.kernels_differ for pair in pairs),
        "rounds": rounds,
        "trials": trials,
        "threads": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="resnet56")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--trials", type=int, default=0, help="tuning budget for a thread count")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each module")
    args = parser.parse_args()
    set_up_logging()
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-bench-") as folder:
        report = bench(MODELS[args.model], args.threads, args.rounds, args.trials, pathlib.Path(folder))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
