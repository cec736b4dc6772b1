"""A finished run's design, compiled for another target: its exits and thresholds stay, only the kernels are others.

For a device that is not at hand, and so measures nothing. What the exits answer is the same everywhere, so the
accuracy holds; the latencies that the design was chosen by do not, and the report is not of this library.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from dataclasses import dataclass

import tvm

from hapi_tvm import recordio
from hapi_tvm.backbone_build import manifest
from hapi_tvm.branch_arrays import unpacked
from hapi_tvm.compiling import compile_design
from hapi_tvm.errors import RecordError, RunMismatch
from hapi_tvm.hashing import digest
from hapi_tvm.importing import Backbone
from hapi_tvm.network import read_network
from hapi_tvm.passes.attach_exits import BranchWeights
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.recordio import Envelope
from hapi_tvm.records import Certificate, Design, ExitGraph, Option
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules

__all__ = ["port"]


def port(
    run_dir: str | os.PathLike[str],
    backbone: Backbone,
    target: Target,
    library: str | os.PathLike[str],
    *,
    database_dir: str | os.PathLike[str] | None = None,
    dump_ir: str | os.PathLike[str] | None = None,
) -> tvm.runtime.Executable:
    """Compile the design in ``run_dir`` for ``target``, write ``library``, and return what was compiled.

    Nothing is run, so the target needs no device, and the numbers are not checked. backbone: the run's own.
    database_dir: of kernels that were tuned for ``target`` before; the others, and without it all, have the target's
    schedules without trials. dump_ir: a folder for the IR after every pass.

    Raises RecordError where the run has no design, RunMismatch for another backbone, BuildError.
    """
    run = _read_run(pathlib.Path(run_dir), backbone)
    dump_dir = None if dump_ir is None else pathlib.Path(dump_ir)
    tensors = [candidate.tensor for candidate in run.graph.candidates]
    lowered = lower_everything(backbone.module, tensors, run.weights, target.tvm_target, target.vector_width, dump_dir)
    network = read_network(lowered, run.graph)
    placed = run.design.exits
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as empty:
        schedules = best_schedules(network.kernels.values(), target, pathlib.Path(database_dir or empty))
    compiled = compile_design(
        network.module,
        [Option(exit_.candidate, exit_.kind) for exit_ in placed],
        manifest(backbone, target, placed, digest("ported", run.design, target.name), run.certificate),
        schedules,
        target,
        dump_dir,
    )
    target.reach.export(compiled, library)
    return compiled


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run folder holds of its design."""

    graph: ExitGraph
    weights: dict[Option, BranchWeights]
    design: Design
    certificate: Certificate | None


def _read_run(folder: pathlib.Path, backbone: Backbone) -> _Run:
    exits, branches, searched = (_read(folder / name) for name in ("exits.json", "branches.npz", "design.json"))
    graph = recordio.decode(ExitGraph, exits, str(folder / "exits.json"))
    design = recordio.decode(Design, searched, str(folder / "design.json"))
    if graph.model_hash != backbone.hash:
        raise RunMismatch(
            f"run folder {folder} is of the model {graph.model_hash}, and {backbone.name} is {backbone.hash}: give the "
            "model that the run was built from"
        )
    if design.provenance.get("exits") != digest(graph):
        raise RecordError(f"{folder / 'design.json'} was searched among other exits than exits.json has: build again")
    certificate = folder / "certificate.json"
    return _Run(
        graph,
        unpacked(branches.arrays, graph),
        design,
        recordio.read_record(certificate, Certificate) if certificate.exists() else None,
    )


def _read(path: pathlib.Path) -> Envelope:
    try:
        return recordio.read(path)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; `hapi-tvm build ... --run {path.parent}` writes it") from None
