"""``hapi-tvm search RUN``: the tables of a run searched again, with every option doing what it says."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from hapi_tvm.recordio import from_json
from hapi_tvm.records import SLA, Design, Prediction
from hapi_tvm.report import read_report
from hapi_tvm.runfolder import RunFolder, read_record
from hapi_tvm.search import Space, evaluate, pareto, sdf, search
from tests.search.instances import network
from tests.small_job import SLA as BUILT_SLA
from tests.small_job import command

CALIBRATION, LATENCY, GRAPH = network(1, samples=400, candidates=5)
BYTES = {"kind_0": 400, "kind_1": 4000}
WHOLE_MS = evaluate(CALIBRATION, LATENCY, ()).mean_us / 1000
QUICK = ("--grid", 8, "--max-exits", 2)


def saved(folder, identity: str, **records) -> None:
    with RunFolder(folder, logging.getLogger("test")).open({"model": identity}) as run:
        for name, record in records.items():
            run.save(name, record, "key")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The records of a build that searched this network, as a build leaves them."""
    folder = tmp_path_factory.mktemp("run") / "run"
    saved(folder, "model", exits=GRAPH, calibrate=CALIBRATION, latency=LATENCY)
    with RunFolder(folder, logging.getLogger("test")).open({"model": "model"}) as run:
        weights = {
            f"{option.candidate}/{option.kind}/weight": np.zeros(BYTES[option.kind] // 4, np.float32)
            for option in GRAPH.options
        }
        run.save_arrays("branches", weights, "key")
    return folder


def found(run_dir, *options) -> dict:
    done = command("search", run_dir, "--json", *QUICK, *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def design_of(run_dir, *options) -> Design:
    return from_json(Design, found(run_dir, *options)["design"])


def unbeaten(designs: list[Design]) -> list[Design]:
    """By rising latency; each pair compared. Of equals in both, the first with the fewest exits."""

    def beats(one: Design, other: Design) -> bool:
        ours, theirs = ((-d.predicted.mean_us, d.predicted.accuracy) for d in (one, other))
        fewer = (len(one.exits), designs.index(one)) < (len(other.exits), designs.index(other))
        return ours[0] >= theirs[0] and ours[1] >= theirs[1] and (ours != theirs or fewer)

    kept = [design for design in designs if not any(beats(other, design) for other in designs)]
    return sorted(kept, key=lambda design: design.predicted.mean_us)


def searched(sla: SLA, space: Space) -> Design:
    return search(CALIBRATION, LATENCY, GRAPH, sla, space=space)


DROP = SLA(max_accuracy_drop=0.03, max_exits=2)
GRID = Space(grid=8)


@pytest.mark.parametrize(
    ("options", "sla", "space"),
    [
        ((), replace(DROP, max_accuracy_drop=0.01), GRID),
        (("--max-accuracy-drop", 0.03), DROP, GRID),
        (("--mean-latency-ms", 0.7 * WHOLE_MS), SLA(mean_latency_ms=0.7 * WHOLE_MS, max_exits=2), GRID),
        (("--p95-latency-ms", WHOLE_MS), SLA(p95_latency_ms=WHOLE_MS, max_exits=2), GRID),
        (("--p99-latency-ms", 1.1 * WHOLE_MS), SLA(p99_latency_ms=1.1 * WHOLE_MS, max_exits=2), GRID),
        (("--worst-latency-ms", 1.1 * WHOLE_MS), SLA(worst_latency_ms=1.1 * WHOLE_MS, max_exits=2), GRID),
        (("--deadline-ms", 0.8 * WHOLE_MS), SLA(deadline_ms=0.8 * WHOLE_MS, max_exits=2), GRID),
        (
            ("--sla", f"p95_latency_ms={WHOLE_MS},drop_confidence=0.5", "--max-accuracy-drop", 0.03),
            SLA(max_accuracy_drop=0.03, p95_latency_ms=WHOLE_MS, drop_confidence=0.5, max_exits=2),
            GRID,
        ),
        (
            ("--max-accuracy-drop", 0.03, "--drop-confidence", 0.5),
            replace(DROP, drop_confidence=0.5),
            GRID,
        ),
        (("--max-accuracy-drop", 0.03, "--latency-quantile", 0.9), replace(DROP, latency_quantile=0.9), GRID),
        (("--max-accuracy-drop", 0.03, "--quantile", 0.9), replace(DROP, latency_quantile=0.9), GRID),
        (("--max-accuracy-drop", 0.03, "--shared-threshold"), DROP, Space(grid=8, shared=True)),
        (("--max-accuracy-drop", 0.03, "--kinds", "kind_1"), DROP, Space(grid=8, kinds=("kind_1",))),
        (
            ("--max-accuracy-drop", 0.03, "--must", "exit_00", "--must-not", "exit_01,exit_02"),
            DROP,
            Space(grid=8, must=frozenset({0}), must_not=frozenset({1, 2})),
        ),
        (
            ("--max-accuracy-drop", 0.03, "--max-bytes", 4399),
            DROP,
            Space(grid=8, option_bytes=(400, 4000) * 5, max_bytes=4399),
        ),
    ],
)
def test_every_option_reaches_the_search(run_dir, options, sla, space):
    answer = found(run_dir, *options)
    design = from_json(Design, answer["design"])
    assert design == searched(sla, space)
    assert design.proven_optimal and answer["gap"] == 0.0
    levels = {"drop_confidence": sla.drop_confidence, "latency_quantile": sla.latency_quantile}
    assert from_json(Prediction, answer["plain"]) == evaluate(CALIBRATION, LATENCY, (), **levels)
    front = pareto(CALIBRATION, LATENCY, GRAPH, **levels, max_exits=2, space=space)
    assert [from_json(Design, point) for point in answer["front"]] == unbeaten([*front, design])


def test_the_options_of_the_space_change_the_answer(run_dir):
    """Else the test above would pass for options that are never looked at."""
    free = design_of(run_dir, "--max-accuracy-drop", 0.03)
    for limit in (
        ("--shared-threshold",),
        ("--kinds", "kind_1" if any(placed.kind == "kind_0" for placed in free.exits) else "kind_0"),
        ("--must-not", free.exits[0].name),
        ("--must", next(c.name for c in GRAPH.candidates if c.name not in {placed.name for placed in free.exits})),
        ("--max-bytes", sum(BYTES[placed.kind] for placed in free.exits) - 1),
    ):
        limited = design_of(run_dir, "--max-accuracy-drop", 0.03, *limit)
        assert limited.exits != free.exits, limit
    planned = design_of(run_dir, "--max-accuracy-drop", 0.03, "--quantile", 0.99)
    assert planned.predicted.mean_us > free.predicted.mean_us


def test_the_tables_show_the_design_its_proof_and_the_front(run_dir):
    done = command("search", run_dir, *QUICK, "--max-accuracy-drop", 0.03)
    assert done.exit_code == 0, done.output
    design = searched(DROP, GRID)
    for placed in design.exits:
        assert placed.name in done.output and f"{placed.threshold:.4f}" in done.output
    assert f"{100 * design.predicted.accuracy:.2f} %" in done.output
    assert f"space: {design.space}" in done.output
    assert "proof: no design of the grid is better" in done.output
    rows = done.output.partition("front: exits and thresholds")[2].strip().splitlines()[2:]
    front = unbeaten([*pareto(CALIBRATION, LATENCY, GRAPH, max_exits=2, space=GRID), design])
    assert len(rows) == len(front)
    for row, point in zip(rows, front, strict=True):
        assert f"{100 * point.predicted.accuracy:.2f} %" in row


def test_out_of_time_it_says_how_far_off_it_can_be(run_dir):
    for options, said in (
        (("--max-accuracy-drop", 0.03), "proof: none in the time given: raise --seconds"),
        (("--mean-latency-ms", 1.1 * WHOLE_MS), "proof: accuracy within 100.00 points of the grid's best"),
    ):
        done = command("search", run_dir, "--seconds", 1e-9, *options)
        assert done.exit_code == 0, done.output
        assert said in done.output
        answer = found(run_dir, "--seconds", 1e-9, *options)
        assert not answer["design"]["proven_optimal"] and answer["gap"] != 0.0


def test_the_dataflow_graph_on_demand(run_dir):
    options = (*QUICK, "--max-accuracy-drop", 0.03)
    flow = sdf(searched(DROP, GRID), CALIBRATION, LATENCY)
    assert str(flow) in command("search", run_dir, *options, "--sdf").output
    assert "topology matrix" not in command("search", run_dir, *options).output
    assert found(run_dir, "--max-accuracy-drop", 0.03, "--sdf")["sdf"] == flow.to_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-accuracy-drop", 2), "error: SLA: max_accuracy_drop=2.0 must lie in [0, 1]"),
        (("--latency-quantile", 1), "error: SLA: latency_quantile=1.0 must lie in [0.5, 1)"),
        (("--sla", "p90_latency_ms=1"), "error: SLA: there is no 'p90_latency_ms'; an SLA may have max_accuracy_drop"),
        (("--sla", "max_exits=3", "--max-exits", 2), "error: SLA: max_exits is given twice, 2 and 3; give it once"),
        (("--must", "exit_77"), "error: Space: the run has no exit 'exit_77'; its candidates are exit_00, exit_01"),
        (("--must", "exit_01", "--must-not", "exit_01"), "error: Space: candidate 1 is in must and in must_not"),
        (("--kinds", "conv"), "error: Space.kinds names 'conv'; the tables have kind_0, kind_1"),
        (("--grid", 0), "--grid"),
        (("--seconds", 0), "--seconds"),
        (("--seconds", "nan"), "error: search: time_limit_s=nan must be a number of seconds"),
        (("--max-bytes", -1), "--max-bytes"),
        (("--p90-latency-ms", 1), "No such option"),
        (("--certify-delta", 0.1), "error: SLA: certify_delta=0.1 is for a build, which certifies once on"),
        (("--mean-latency-ms", 1e-6), "error: no design meets mean_latency_ms=1e-06; the fastest takes"),
        (
            ("--must", "exit_00", "--max-bytes", 10),
            "error: Space: no design has exits at [0], max_exits=4, max_bytes=10",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(run_dir, options, message):
    done = command("search", run_dir, "--grid", 8, *options)
    assert done.exit_code == 2 and message in done.stderr, done.output
    assert "Traceback" not in done.output and done.stdout == ""


@pytest.mark.parametrize("missing", ["exits.json", "calibrate.npz", "latency.json", "branches.npz"])
def test_a_folder_without_a_table(run_dir, tmp_path, missing):
    for path in run_dir.glob("*.*"):
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    done = command("search", tmp_path)
    assert done.exit_code == 2
    assert f"error: {tmp_path / missing} does not exist; `hapi-tvm build ... --run {tmp_path}` writes it" in done.stderr


def test_a_broken_table_and_one_of_another_run(run_dir, tmp_path):
    for path in run_dir.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = tmp_path / "other"
    saved(other, "another model", latency=LATENCY)
    (tmp_path / "latency.json").write_bytes((other / "latency.json").read_bytes())
    done = command("search", tmp_path)
    assert done.exit_code == 2 and "holds records of several runs" in done.stderr
    (tmp_path / "latency.json").write_text("{")
    done = command("search", tmp_path)
    assert done.exit_code == 2 and f"error: {tmp_path / 'latency.json'} is broken" in done.stderr


def test_a_real_run_gives_the_design_it_was_built_with(built):
    before = {path.name: path.stat().st_mtime_ns for path in built.run_dir.iterdir()}
    options = ("--max-accuracy-drop", BUILT_SLA.max_accuracy_drop, "--drop-confidence", BUILT_SLA.drop_confidence)
    done = command("search", built.run_dir, "--json", "--max-bytes", 10**9, *options)
    assert done.exit_code == 0, done.output
    design = from_json(Design, json.loads(done.output)["design"])
    assert replace(design, provenance={}) == replace(
        read_record(built.run_dir / "design.json", Design), provenance={}
    )
    report = read_report(built.run_dir)
    assert [point["predicted"]["mean_us"] for point in json.loads(done.output)["front"]] == [
        point["mean_latency_us"] for point in report["pareto"]
    ]
    assert {path.name: path.stat().st_mtime_ns for path in built.run_dir.iterdir()} == before


def test_a_robust_build_plans_reports_and_draws_at_the_quantile(copied):
    copied.build(replace(BUILT_SLA, latency_quantile=0.99))
    report = read_report(copied.run_dir)
    design = read_record(copied.run_dir / "design.json", Design)
    sla = f"max_accuracy_drop={BUILT_SLA.max_accuracy_drop},drop_confidence={BUILT_SLA.drop_confidence}"
    answer = json.loads(command("search", copied.run_dir, "--json", "--sla", sla, "--quantile", 0.99).output)
    assert report["sla"]["latency_quantile"] == design.sla.latency_quantile == 0.99
    assert answer["design"]["predicted"]["mean_us"] == report["predicted"]["mean_latency_us"]
    assert [point["predicted"]["mean_us"] for point in answer["front"]] == [
        point["mean_latency_us"] for point in report["pareto"]
    ]
    assert "planned at the 99.0 % quantile" in " ".join((copied.run_dir / "report.html").read_text().split())
