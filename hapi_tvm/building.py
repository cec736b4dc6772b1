"""The main job: from a backbone, images, a target and an SLA to a compiled artifact and its report.

Each stage reads records and writes one into the run folder, under the hash of its inputs: a build that
was killed goes on where it was, and another SLA repeats the search and what follows it.
"""

from __future__ import annotations

import datetime
import logging
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import tvm

import hapi_tvm
from hapi_tvm.backbone_build import TunedNetwork, check_answer, manifest, tuned_network
from hapi_tvm.branch_arrays import packed, unpacked
from hapi_tvm.calibration import answer_all
from hapi_tvm.certify import certify, hold_out
from hapi_tvm.compiling import compile_design
from hapi_tvm.costing import cost, schedules_hash
from hapi_tvm.datasets import Dataset, Split, check_dataset
from hapi_tvm.exits import exit_graph
from hapi_tvm.hashing import digest
from hapi_tvm.importing import Backbone
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.progress import stage
from hapi_tvm.records import SLA, CalibrationTable, Certificate, Design, ExitGraph, Ladder, LatencyTable, Option
from hapi_tvm.report.collect import RunRecords, collect, design_kernels
from hapi_tvm.report.files import read_report, write_report
from hapi_tvm.runfolder import RunFolder
from hapi_tvm.runtime import Artifact, load, unloaded
from hapi_tvm.search import ladder, pareto, search
from hapi_tvm.search.front import joined
from hapi_tvm.targets import Target
from hapi_tvm.training import BranchWeights, TrainingConfig, train_branches
from hapi_tvm.verifying import compare, run_test_split

__all__ = ["build"]

_LOG = logging.getLogger("hapi_tvm")
MEASURING_ROUNDS = 4  # of search, then measuring what the design needs; the last measures all kernels that are left


def build(
    backbone: Backbone,
    data: Dataset,
    target: Target,
    *,
    sla: SLA,
    run_dir: str | os.PathLike[str],
    trials: int = 256,
    measure_budget: int | None = None,
    spacing: float = 0.0,
    epochs: int = 6,
    distillation: float = 0.5,
    seed: int = 0,
    database_dir: str | os.PathLike[str] | None = None,
    dump_ir: str | os.PathLike[str] | None = None,
) -> Artifact:
    """Build ``run_dir/model.so`` with its report, or take up what is there already.

    trials: tuning budget over all kernels; 0 takes untuned schedules. measure_budget: how many kernels to
    measure, the surrogate predicts the others; None measures all. spacing: least share of the FLOPs
    between two candidates. epochs, distillation: of the branches' training, see ``TrainingConfig``.
    database_dir: of tuned and measured kernels, shared by all runs; by default
    in the user's cache folder. dump_ir: a folder for the IR after every pass.

    With ``sla.certify_delta`` half of the calibration split is kept from the search, and what is built is the
    fastest design that can be certified on it, or the safest one tried, with what it lacks. The test split certifies
    nothing: what is chosen on a split is no longer new to it.

    Raises HapiError: DataError, NoLegalCut, InfeasibleSLA, RunMismatch, BuildError, ...
    """
    check_dataset(data, backbone.input_shape, backbone.classes)
    target.reach.check()
    identity = {
        "model": backbone.hash,
        "dataset": data.hash,
        "target": target.name,
        "hapi_tvm": hapi_tvm.__version__,
        "tvm": tvm.__version__,
    }
    settings = _Settings(
        sla,
        TrainingConfig(epochs=epochs, distillation=distillation, seed=seed),
        trials,
        measure_budget,
        spacing,
        seed,
        pathlib.Path(database_dir) if database_dir is not None else _default_database(),
        pathlib.Path(dump_ir) if dump_ir is not None else None,
    )
    with RunFolder(run_dir, _LOG).open(identity) as folder:
        return _Run(folder, backbone, data, target, settings).finish()


@dataclass(frozen=True, slots=True)
class _Settings:
    sla: SLA
    training: TrainingConfig
    trials: int
    measure_budget: int | None
    spacing: float
    seed: int
    database_dir: pathlib.Path
    dump_dir: pathlib.Path | None

    @property
    def certifying(self) -> bool:
        return self.sla.certify_delta is not None


def _default_database() -> pathlib.Path:
    """Where the platform keeps caches (XDG on Linux)."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "hapi_tvm" / "kernels"


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is built. key: tells it from everything else that may have been built here."""

    design: Design
    certificate: Certificate | None

    @property
    def key(self) -> str:
        return digest("design", self.design, self.certificate)


class _Run:
    """The stages of one build, in order. What a stage made in an earlier run is read, not made again."""

    def __init__(
        self, folder: RunFolder, backbone: Backbone, data: Dataset, target: Target, settings: _Settings
    ):
        self.folder = folder
        self.backbone = backbone
        self.data = data
        self.target = target
        self.settings = settings
        self.timings_s: dict[str, float] = {}
        self.started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

    def finish(self) -> Artifact:
        graph = self._exits()
        branches_key = digest("branches", graph, self.settings.training)
        weights = self._train(graph, branches_key)
        calibration = self._answers("calibrate", self.data.calibrate, graph, weights, branches_key)
        held_out = None
        if self.settings.certifying:
            calibration, held_out = hold_out(calibration, seed=self.settings.seed)
        costs = _Costs(self, graph, weights, branches_key)
        designs, latency = self._search(graph, calibration, costs)
        chosen = self._choose(designs, held_out)
        built = self._is_built(chosen.key)
        if not built and costs.out_of_date(latency):
            costs.measure(set())
            designs, latency = self._search(graph, calibration, costs)
            chosen = self._choose(designs, held_out)
        self._keep(designs, chosen)
        if not built:
            self.folder.path("report.json").unlink(missing_ok=True)  # it would speak of another model.so
            costs.plain_backbone()
            with stage("compile", self.timings_s) as note:
                size_bytes = self.compile("model.so", costs, chosen.key, chosen)
                note(f"model.so, {size_bytes / 2**20:.1f} MiB")
            self._verify(graph, weights, branches_key, calibration, latency, chosen)
        return self._opened("model.so")

    def _opened(self, name: str) -> Artifact:
        path = self.folder.path(name)
        return unloaded(path) if self.target.reach.remote else load(path)

    def _exits(self) -> ExitGraph:
        """The candidates; none at all where the network has no legal cut and the SLA wants no exit."""
        wanted = self.settings.sla.max_exits > 0
        key = digest("exits", self.backbone.hash, self.settings.spacing, wanted)
        graph = self.folder.load("exits", ExitGraph, key)
        if graph is None:
            with stage("exits", self.timings_s) as note:
                graph = exit_graph(self.backbone, self.settings.spacing, may_be_empty=not wanted)
                note(f"{len(graph.candidates)} candidates, branches {', '.join(graph.kinds)}")
            self.folder.save("exits", graph, key)
        return graph

    def _train(self, graph: ExitGraph, key: str) -> dict[Option, BranchWeights]:
        stored = self.folder.load_arrays("branches", key)
        if stored is not None:
            return unpacked(stored, graph)
        with stage("train", self.timings_s) as note:
            weights = train_branches(self.backbone, graph, self.data.train, self.settings.training)
            note(f"{len(weights)} branches on {len(self.data.train)} images")
        self.folder.save_arrays("branches", packed(weights), key)
        return weights

    def _answers(
        self,
        name: str,
        split: Split,
        graph: ExitGraph,
        weights: Mapping[Option, BranchWeights],
        branches_key: str,
    ) -> CalibrationTable:
        key = digest(name, branches_key)
        table = self.folder.load(name, CalibrationTable, key)
        if table is None:
            with stage(name, self.timings_s) as note:
                table = answer_all(self.backbone, graph, weights, split, name)
                note(f"{len(split)} images, backbone right on {100 * table.right[:, -1].mean():.2f} %")
            self.folder.save(name, table, key)
        return table

    def _search(
        self, graph: ExitGraph, calibration: CalibrationTable, costs: _Costs
    ) -> tuple[tuple[Design, ...], LatencyTable]:
        """Search, then measure whatever the designs use and was only predicted, until nothing is left."""
        latency = costs.table()
        designs = self._searched(graph, calibration, latency)
        for attempt in range(MEASURING_ROUNDS):
            predicted = {kernel.key for kernel in latency.kernels if not kernel.measured}
            missing = predicted & {key for design in designs for key in design_kernels(design, latency)}
            if not missing:
                break
            latency = costs.measure(predicted if attempt == MEASURING_ROUNDS - 1 else missing)
            designs = self._searched(graph, calibration, latency)
        return designs, latency

    def _searched(
        self, graph: ExitGraph, calibration: CalibrationTable, latency: LatencyTable
    ) -> tuple[Design, ...]:
        """The search's choice; if it is to be certified, behind the safer designs of its ladder."""
        provenance = {"calibration": digest(calibration), "latency": digest(latency), "exits": digest(graph)}
        if stored := self._stored(self._search_key(provenance)):
            return stored
        sla = self.settings.sla
        with stage("search", self.timings_s) as note:
            if self.settings.certifying:
                designs = ladder(calibration, latency, graph, sla).designs
            else:
                designs = (search(calibration, latency, graph, sla),)
            choice = designs[-1]
            safer = f", {len(designs) - 1} safer designs" if self.settings.certifying else ""
            note(f"{len(choice.exits)} exits, {choice.predicted.mean_us:.0f} us on average expected{safer}")
        return tuple(replace(design, provenance=provenance) for design in designs)

    def _stored(self, key: str) -> tuple[Design, ...]:
        if self.settings.certifying:
            stored = self.folder.load("ladder", Ladder, key)
            return () if stored is None else stored.designs
        design = self.folder.load("design", Design, key)
        return () if design is None else (design,)

    def _choose(self, designs: tuple[Design, ...], held_out: CalibrationTable | None) -> _Chosen:
        """Only now are the held-out samples read: the designs, and their latencies, are final."""
        if held_out is None:
            return _Chosen(designs[-1], None)
        sla = self.settings.sla
        return _Chosen(*certify(designs, held_out, epsilon=sla.max_accuracy_drop, delta=sla.certify_delta))

    def _keep(self, designs: tuple[Design, ...], chosen: _Chosen) -> None:
        """Write the design, now that its latencies are measured: on predictions alone it might be infeasible
        in the end, and would have taken the place of an earlier result."""
        key = self._search_key(chosen.design.provenance)
        self._keep_one("design", chosen.design, key)
        if chosen.certificate is None:
            self.folder.path("certificate.json").unlink(missing_ok=True)  # it would speak of another design
            return
        self._keep_one("ladder", Ladder(designs), key)
        self._keep_one("certificate", chosen.certificate, key)
        if not chosen.certificate.certified:
            _LOG.warning(chosen.certificate.verdict)

    def _keep_one(self, name: str, record: object, key: str) -> None:
        if self.folder.load(name, type(record), key) is None:
            self.folder.save(name, record, key)

    def _search_key(self, provenance: Mapping[str, str]) -> str:
        return digest("search", provenance, self.settings.sla)

    def _is_built(self, design_key: str) -> bool:
        """Whether ``model.so`` and the report are those of this design."""
        if not self.folder.path("report.json").exists() or not self.folder.path("report.html").exists():
            return False
        try:
            read_report(self.folder.folder)
            return self.is_made("model.so", design_key)
        except hapi_tvm.HapiError:
            return False

    def is_made(self, name: str, key: str) -> bool:
        """Whether the library ``name`` is that of ``key``. Raises HapiError where there is none."""
        return self._opened(name).manifest["design_key"] == key

    def dump_dir(self, part: str) -> pathlib.Path | None:
        return None if self.settings.dump_dir is None else self.settings.dump_dir / part

    def compile(self, name: str, costs: _Costs, key: str, chosen: _Chosen | None = None) -> int:
        """Write the library ``name`` of a design, or of the plain backbone; returns its bytes."""
        placed = () if chosen is None else chosen.design.exits
        compiled = compile_design(
            costs.network.module,
            [Option(exit_.candidate, exit_.kind) for exit_ in placed],
            manifest(self.backbone, self.target, placed, key, None if chosen is None else chosen.certificate),
            costs.schedules,
            self.target,
            self.dump_dir(pathlib.Path(name).stem),
        )
        with self.folder.writing(name) as path:
            self.target.reach.export(compiled, path)
            check_answer(path, self.backbone, costs.tuned, self.target)
        return self.folder.path(name).stat().st_size

    def _verify(
        self,
        graph: ExitGraph,
        weights: Mapping[Option, BranchWeights],
        branches_key: str,
        calibration: CalibrationTable,
        latency: LatencyTable,
        chosen: _Chosen,
    ) -> None:
        test = self._answers("test", self.data.test, graph, weights, branches_key)
        with stage("front", self.timings_s) as note:
            sla = self.settings.sla
            front = pareto(
                calibration,
                latency,
                graph,
                drop_confidence=sla.drop_confidence,
                latency_quantile=sla.latency_quantile,
                max_exits=sla.max_exits,
            )
            front = joined(front, chosen.design)
            note(f"{len(front)} designs")
        with stage("verify", self.timings_s) as note:
            libraries = (self.folder.path(name) for name in ("model.so", "backbone.so"))
            thresholds = [placed.threshold for placed in chosen.design.exits]
            run = run_test_split(*libraries, thresholds, self.data.test, self.target)
            agreement = compare(run, test, chosen.design)
            note(
                f"{len(run.exit)} samples, {run.latency_us.mean():.0f} us on average "
                f"against {run.plain_us.mean():.0f}; same exit as the oracle on {agreement.same_exit}"
            )
        report = collect(
            RunRecords(
                model=self.backbone.name,
                dataset=f"{self.data.name} ({self.data.source})",
                splits=self._split_sizes(calibration),
                graph=graph,
                latency=latency,
                calibration=calibration,
                design=chosen.design,
                certificate=chosen.certificate,
                front=front,
                test=test,
                run=run,
                agreement=agreement,
                machine=self.target.reach.facts(),
                timings_s=self.timings_s,
                started=self.started,
            )
        )
        write_report(self.folder.folder, report)

    def _split_sizes(self, searched: CalibrationTable) -> dict[str, int]:
        """searched: what the search read, all of the calibration split or a part."""
        sizes = {name: len(split) for name, split in self.data.splits.items()}
        held_out = sizes["calibrate"] - len(searched.label)
        return sizes | ({"calibrate": len(searched.label), "certify": held_out} if held_out else {})


class _Costs:
    """The lowered network, its schedules and its latencies; made when they are first asked for."""

    def __init__(
        self, run: _Run, graph: ExitGraph, weights: Mapping[Option, BranchWeights], branches_key: str
    ):
        self._run = run
        self._graph = graph
        self._weights = weights
        settings = run.settings
        self._key = digest("latency", graph, branches_key, settings.trials, settings.measure_budget, settings.seed)
        self._tuned: TunedNetwork | None = None
        self._needed: set[str] = set()

    @property
    def network(self) -> LoweredNetwork:
        return self.tuned.network

    @property
    def schedules(self) -> Mapping[str, Scheduled]:
        return self.tuned.schedules

    @property
    def tuned(self) -> TunedNetwork:
        if self._tuned is None:
            run, settings = self._run, self._run.settings
            self._tuned = tuned_network(
                run.backbone,
                self._graph,
                self._weights,
                run.target,
                settings.database_dir,
                settings.trials,
                settings.seed,
                run.timings_s,
                run.dump_dir("network"),
            )
        return self._tuned

    def table(self) -> LatencyTable:
        """The stored table, or a new one under the measuring budget."""
        table = self._run.folder.load("latency", LatencyTable, self._key)
        if table is None:
            return self.measure(set())
        self._needed = {kernel.key for kernel in table.kernels if kernel.measured}
        return table

    def out_of_date(self, table: LatencyTable) -> bool:
        """Whether another run has tuned these kernels since: what would be compiled is not what was measured."""
        return table.schedules != schedules_hash(self.schedules)

    def measure(self, needed: set[str]) -> LatencyTable:
        """A new table in which the kernels in ``needed``, and all measured before, are measured."""
        run = self._run
        plain = self.plain_backbone()
        with stage("measure", run.timings_s) as note:
            self._needed |= needed
            table = cost(
                self.network,
                self._graph,
                run.target,
                run.settings.database_dir,
                plain,
                self.schedules,
                budget=run.settings.measure_budget,
                needed=self._needed,
                seed=run.settings.seed,
            )
            measured = sum(kernel.measured for kernel in table.kernels)
            note(
                f"{measured} kernels measured, {len(table.kernels) - measured} predicted; whole backbone "
                f"{table.scale:.2f} of the sum"
            )
        run.folder.save("latency", table, self._key)
        return table

    def plain_backbone(self) -> pathlib.Path:
        """The library of the backbone without exits, from the same kernels: what the artifact is compared with."""
        path = self._run.folder.path("backbone.so")
        key = digest("backbone", self._key, schedules_hash(self.schedules))
        try:
            if self._run.is_made("backbone.so", key):
                return path
        except hapi_tvm.HapiError:
            pass  # absent or broken: compiled below
        with stage("compile backbone", self._run.timings_s) as note:
            size_bytes = self._run.compile("backbone.so", self, key)
            note(f"backbone.so, {size_bytes / 2**20:.1f} MiB")
        return path
