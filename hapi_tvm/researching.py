"""Another search of a run folder's tables: nothing is trained, measured or compiled, and nothing is written."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hapi_tvm import recordio
from hapi_tvm.errors import RecordError, RunMismatch, SLAError
from hapi_tvm.recordio import Envelope
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable, Option, Prediction
from hapi_tvm.search import Space, evaluate, pareto
from hapi_tvm.search.front import joined
from hapi_tvm.search.solver import solve

__all__ = ["Found", "RunTables", "candidates_named", "read_tables", "search_again"]


@dataclass(frozen=True, slots=True)
class RunTables:
    """What a search of a run reads. weight_bytes: of each option's branch, ordered as the options."""

    graph: ExitGraph
    calibration: CalibrationTable
    latency: LatencyTable
    weight_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """gap: as ``Solution.gap``. plain: the backbone without exits, planned as ``design`` is. front: by rising mean
    latency."""

    design: Design
    gap: float
    plain: Prediction
    front: tuple[Design, ...]


def read_tables(run_dir: str | os.PathLike[str]) -> RunTables:
    """The tables of a run folder, which another process may be building in.

    Raises RecordError where one is missing or broken, RunMismatch where they are of different runs.
    """
    folder = pathlib.Path(run_dir)
    files = {name: _read(folder / name) for name in ("exits.json", "calibrate.npz", "latency.json", "branches.npz")}
    if len({envelope.run for envelope in files.values()}) > 1:
        owners = ", ".join(f"{name} of {envelope.run}" for name, envelope in files.items())
        raise RunMismatch(f"run folder {folder} holds records of several runs ({owners}); build it again")
    graph = recordio.decode(ExitGraph, files["exits.json"], str(folder / "exits.json"))
    return RunTables(
        graph,
        recordio.decode(CalibrationTable, files["calibrate.npz"], str(folder / "calibrate.npz")),
        recordio.decode(LatencyTable, files["latency.json"], str(folder / "latency.json")),
        _weight_bytes(graph, files["branches.npz"]),
    )


def candidates_named(graph: ExitGraph, names: Sequence[str]) -> frozenset[int]:
    """Indices of candidates. Raises SLAError for a name that the graph lacks."""
    index = {candidate.name: place for place, candidate in enumerate(graph.candidates)}
    for name in names:
        if name not in index:
            raise SLAError(f"Space: the run has no exit {name!r}; its candidates are {', '.join(index) or 'none'}")
    return frozenset(index[name] for name in names)


def search_again(tables: RunTables, sla: SLA, space: Space, *, seconds: float) -> Found:
    """The best design for ``sla``, and the front, of which no design is beaten by it. ``seconds`` for each.

    Raises InfeasibleSLA, SLAError and RecordError, as ``search`` does. SLAError for an SLA that asks for a certificate,
    too: samples that several searches were certified on would promise less with each.
    """
    if sla.certify_delta is not None:
        raise SLAError(
            f"SLA: certify_delta={sla.certify_delta} is for a build, which certifies once on samples that no search "
            "saw; leave it out here, or run `hapi-tvm build` with it"
        )
    records = (tables.calibration, tables.latency, tables.graph)
    solution = solve(*records, sla, space=space, time_limit_s=seconds)
    levels = {"drop_confidence": sla.drop_confidence, "latency_quantile": sla.latency_quantile}
    plain = evaluate(tables.calibration, tables.latency, (), **levels)
    front = pareto(*records, **levels, max_exits=sla.max_exits, space=space, time_limit_s=seconds)
    return Found(solution.design, solution.gap, plain, joined(front, solution.design))


def _read(path: pathlib.Path) -> Envelope:
    try:
        return recordio.read(path)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; `hapi-tvm build ... --run {path.parent}` writes it") from None


def _weight_bytes(graph: ExitGraph, branches: Envelope) -> tuple[int, ...]:
    """Branches are stored as arrays named ``candidate/kind/weight``."""
    total: Mapping[Option, int] = dict.fromkeys(graph.options, 0)
    for name, array in branches.arrays.items():
        candidate, kind, _ = name.split("/")
        option = Option(int(candidate), kind)
        if option not in total:
            raise RecordError(f"branches.npz has weights of {option}, which exits.json lacks; build the run again")
        total[option] += array.nbytes
    return tuple(total.values())
