"""The benchmark of the search mechanisms: its form, on small instances, and what it concludes from traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import bench_search
import search_instances
import search_race
from hapi_tvm.search.strategy import Outcome, Trace
from search_results import Kept
from tests.checkout import ROOT, SCRIPTS

CASE = search_instances.quick_cases()[0]


def test_the_script_runs_every_strategy_and_prints_the_agreed_form(tmp_path):
    for package in ("matplotlib", "optuna", "pymoo"):
        pytest.importorskip(package)
    plot = tmp_path / "plot.svg"
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench_search.py"), "--quick", "--jobs", "2", "--plot", str(plot)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    strategies = {"exact", "random", "annealing", "genetic", "nsga2", "tpe", "coordinate", "insertion"}
    assert [row["name"] for row in report["instances"]] == [case.name for case in search_instances.quick_cases()]
    for row in report["instances"]:
        assert set(row["best"]) == set(row["seconds_to_best"]) == set(row["designs"]) == strategies
        assert {"E", "T", "N", "sla", "gap", "max_exits", "shared", "kinds", "peak_bytes"} <= set(row)
        assert set(row["at"]) == {"0.1", "0.3"} and row["at"]["0.3"] == row["best"]
        assert row["gap"] == 0 and row["proven_at"]["0.3"] and row["seconds_to_proof"] > 0
        assert row["best"]["exact"] == min(value for value in row["best"].values() if value is not None)
    assert report["exact_never_worse"] is True and report["worse"] == []
    assert report["designs_per_second"] > 0 and report["exact_designs_per_second"] > 0
    assert report["median_speedup_to_equal_quality"] > 0
    assert plot.read_text(encoding="utf-8").count("<svg") == 1


def result(strategy: str, seconds: float, best: int) -> search_race.Result:
    outcome = Outcome((), (best, 0, 0), best, False, 1, (Trace(0.1, (best, 0, 0)),))
    return search_race.Result(CASE.name, strategy, seconds, seconds, outcome, 1)


def test_results_outlive_a_run_that_was_stopped(tmp_path):
    path = tmp_path / "results"
    kept = Kept(path, 0, "cpu")
    for seconds, best in ((10.0, 3), (1.0, 5)):
        kept.add(result("exact", seconds, best))
    again = Kept(path, 0, "cpu")
    assert again.has(CASE.name, "exact", 1.0) and not again.has(CASE.name, "random", 1.0)
    assert [found.outcome.key[0] for found in again.of(CASE.name, "exact")] == [5, 3]
    assert again.of(CASE.name, "random") == []
    with pytest.raises(SystemExit, match="of seed and clock .*remove it"):
        Kept(path, 1, "cpu")
    path.write_text("no results")
    with pytest.raises(SystemExit, match="holds no results of this benchmark"):
        Kept(path, 0, "cpu")


def test_what_is_kept_is_not_run_again(tmp_path):
    kept = Kept(None, 0, "wall")
    kept.add(result("exact", 0.1, 7))
    found = bench_search.run_all((CASE,), ["exact"], [0.1], 0, 1, "wall", kept)
    assert found == {CASE.name: [result("exact", 0.1, 7)]}


def test_the_default_instances_are_what_the_documents_say():
    cases = search_instances.default_cases()
    assert len(cases) >= 20 and len({case.name for case in cases}) == len(cases)
    assert {case.asked for case in cases} == set(search_instances.ASKED)
    four = [case for case in cases if case.name.startswith("four-")]
    assert {(case.source.candidates, case.source.samples, case.grid, case.max_exits) for case in four} == {
        (12, 5000, 32, 4)
    }


def test_a_run_folder_gives_instances(built):
    for case in search_instances.run_cases(str(built.run_dir)):
        problem, sla = case.problem()
        assert problem.instance.samples > 0 and sla.max_exits >= 1
        assert problem.holds(())


def row_of(exact, peer) -> bench_search.Row:
    """exact: (given seconds, trace) of each run. peer: trace. A trace is of (seconds, latency)."""

    def result(strategy, given, points):
        trace = tuple(Trace(at, (float(value), 0, 0)) for at, value in points)
        outcome = Outcome((), trace[-1].key if trace else None, 0.0, False, 1, trace)
        return search_race.Result(CASE.name, strategy, given, given, outcome, 0)

    results = [result("exact", given, points) for given, points in exact]
    return bench_search.Row(CASE, [*results, result("random", 10.0, peer)], [1.0, 10.0])


def test_it_sees_where_a_peer_was_better_and_when():
    early = row_of([(1.0, [(0.5, 9)]), (10.0, [(0.5, 9), (4.0, 5)])], [(0.9, 8), (8.0, 5)])
    assert [(entry["seconds"], entry["strategy"]) for entry in early.worse()] == [(1.0, "random")]
    nothing = row_of([(1.0, []), (10.0, [(4.0, 5)])], [(0.9, 8), (8.0, 6)])
    assert [entry["seconds"] for entry in nothing.worse()] == [1.0]
    assert row_of([(1.0, [(0.5, 8)]), (10.0, [(4.0, 5)])], [(0.9, 8), (8.0, 5)]).worse() == []


def test_speedup_is_from_the_best_of_the_others_to_no_worse_a_value():
    row = row_of([(1.0, []), (10.0, [(0.1, 9), (0.5, 6), (2.0, 4)])], [(0.9, 8), (8.0, 7)])
    assert row.times_to_equal_quality() == (8.0, 0.5)
    assert row_of([(1.0, []), (10.0, [(0.1, 9)])], [(8.0, 7)]).times_to_equal_quality() == (8.0, None)
    assert row_of([(1.0, []), (10.0, [(0.1, 9)])], []).times_to_equal_quality() is None


def test_a_case_describes_its_tables_completely():
    one, two = replace(CASE).problem()[0], CASE.problem()[0]
    assert (one.instance.confidence == two.instance.confidence).all()
    assert (one.instance.right == two.instance.right).all()
