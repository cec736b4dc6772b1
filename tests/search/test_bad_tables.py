"""Every table, SLA and space that cannot be right: the message names the record, the place and the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from instances import network, small

from hapi_tvm.errors import HapiError, RecordError, SLAError
from hapi_tvm.records import SLA, CalibrationTable, LatencyTable, PlacedExit
from hapi_tvm.search import Space, evaluate, pareto, search
from hapi_tvm.sla_text import parse_lines

CALIBRATION, LATENCY, GRAPH = small(0, samples=6, candidates=3, kinds=2)
ANY = SLA(max_accuracy_drop=0.1)


def with_entry(name: str, place: tuple[int, ...], value) -> Callable[[], CalibrationTable]:
    """The calibration table with one entry changed."""

    def make() -> CalibrationTable:
        array = getattr(CALIBRATION, name).copy()
        array[place] = value
        return replace(CALIBRATION, **{name: array})

    return make


def with_kernel(index: int, **changes) -> Callable[[], LatencyTable]:
    def make() -> LatencyTable:
        kernels = list(LATENCY.kernels)
        kernels[index] = replace(kernels[index], **changes)
        return replace(LATENCY, kernels=tuple(kernels))

    return make


def with_table(table, **changes) -> Callable:
    return lambda: replace(table, **changes)


def samples(rows: int, *, bad: tuple[int, int] | None = None, value: float = 0.0) -> tuple[tuple[float, ...], ...]:
    repeats = [[2.0, 2.0, 2.0] for _ in range(rows)]
    if bad is not None:
        repeats[bad[0]][bad[1]] = value
    return tuple(map(tuple, repeats))


TABLES = {
    "confidence nan": (
        with_entry("confidence", (4, 1), math.nan),
        r"CalibrationTable\.confidence\[4, 1\] = nan; every confidence must lie in \[0, 1\]",
    ),
    "confidence negative": (with_entry("confidence", (0, 3), -0.25), r"CalibrationTable\.confidence\[0, 3\] = -0\.25"),
    "confidence above 1": (with_entry("confidence", (5, 6), 1.5), r"CalibrationTable\.confidence\[5, 6\] = 1\.5"),
    "confidence infinite": (with_entry("confidence", (2, 2), np.inf), r"CalibrationTable\.confidence\[2, 2\] = inf"),
    "a sample too many": (
        with_table(CALIBRATION, label=np.ones(7, np.int32)),
        r"CalibrationTable\.confidence has shape \(6, 7\); 7 labels and 6 options need \(7, 7\)",
    ),
    "a column too few": (
        with_table(CALIBRATION, prediction=CALIBRATION.prediction[:, :-1]),
        r"CalibrationTable\.prediction has shape \(6, 6\); 6 labels and 6 options need \(6, 7\)",
    ),
    "no samples": (
        with_table(
            CALIBRATION,
            confidence=CALIBRATION.confidence[:0],
            prediction=CALIBRATION.prediction[:0],
            label=CALIBRATION.label[:0],
        ),
        "CalibrationTable: the split 'calibration' is empty",
    ),
    "labels in two columns": (
        with_table(CALIBRATION, label=np.ones((6, 1), np.int32)),
        r"CalibrationTable\.label has shape \(6, 1\); one class a sample is \[N\]",
    ),
    "labels that are no classes": (
        with_table(CALIBRATION, label=np.full(6, math.nan)),
        r"CalibrationTable\.label is float64; classes are counted from 0",
    ),
    "options out of order": (
        with_table(CALIBRATION, options=CALIBRATION.options[::-1]),
        r"CalibrationTable\.options must be ordered by candidate",
    ),
    "latency negative": (
        with_kernel(2, median_us=-1.5),
        r"kernel segment_2 \(segment_2\): median_us=-1\.5 is no latency; measure it again",
    ),
    "latency nan": (with_kernel(0, median_us=math.nan), r"kernel segment_0 \(segment_0\): median_us=nan"),
    "uncertainty negative": (with_kernel(1, sigma_us=-0.1), r"kernel segment_1 \(segment_1\): sigma_us=-0\.1"),
    "uncertainty infinite": (with_kernel(1, sigma_us=math.inf), r"kernel segment_1 \(segment_1\): sigma_us=inf"),
    "repeat negative": (with_kernel(3, samples_us=(1.0, -2.0)), r"kernel segment_3 \(segment_3\): samples_us\[1\]=-2"),
    "latency missing": (
        with_table(LATENCY, kernels=LATENCY.kernels[1:]),
        "LatencyTable: segment 0 calls kernel segment_0, which has no latency",
    ),
    "branch latency missing": (
        with_table(LATENCY, kernels=LATENCY.kernels[:-1]),
        "LatencyTable: branch 5 calls kernel branch_5, which has no latency",
    ),
    "kernel twice": (
        with_table(LATENCY, kernels=(*LATENCY.kernels, replace(LATENCY.kernels[0], median_us=7.0))),
        r"LatencyTable\.kernels\[0\] is segment_0, which another one is too",
    ),
    "segment repeat negative": (
        with_table(LATENCY, segment_samples_us=samples(4, bad=(3, 1), value=-1.0)),
        r"LatencyTable\.segment_samples_us\[3\]\[1\] = -1\.0 is no latency",
    ),
    "branch repeat nan": (
        with_table(LATENCY, branch_samples_us=samples(6, bad=(0, 2), value=math.nan)),
        r"LatencyTable\.branch_samples_us\[0\]\[2\] = nan is no latency",
    ),
    "samples of too few segments": (
        with_table(LATENCY, segment_samples_us=samples(3)),
        "LatencyTable: samples of 3 segment rows, of 4, or empty ones",
    ),
    "gate negative": (with_table(LATENCY, gate_us=-50.0), r"LatencyTable\.gate_us = -50\.0 must be finite and not neg"),
    "call nan": (with_table(LATENCY, call_us=math.nan), r"LatencyTable\.call_us = nan must be finite"),
    "entry infinite": (with_table(LATENCY, entry_us=math.inf), r"LatencyTable\.entry_us = inf must be finite"),
    "scale negative": (with_table(LATENCY, scale=-1.0), r"LatencyTable\.scale = -1\.0 must be finite"),
    "a branch too few": (with_table(LATENCY, branches=LATENCY.branches[1:]), "LatencyTable: 5 branches for 6 options"),
    "no segment": (with_table(LATENCY, segments=()), "LatencyTable: no segment"),
    "threshold above 1": (
        lambda: PlacedExit("exit_02", 2, "kind_0", 1.5, 0.5),
        r"exit exit_02: threshold=1\.5 is outside \[0, 1\]",
    ),
    "threshold nan": (
        lambda: PlacedExit("exit_02", 2, "kind_0", math.nan, 0.5),
        r"exit exit_02: threshold=nan is outside \[0, 1\]",
    ),
}


@pytest.mark.parametrize(("make", "message"), TABLES.values(), ids=list(TABLES))
def test_a_record_that_cannot_be_right(make, message):
    with pytest.raises(RecordError, match=message):
        make()


SEARCHES = {
    "as many kinds, one candidate fewer": (
        (CALIBRATION, small(0, samples=6, candidates=2, kinds=2)[1], GRAPH),
        r"CalibrationTable\.options and LatencyTable\.options differ in length \(6 against 4\)",
    ),
    "another graph": (
        (CALIBRATION, LATENCY, replace(GRAPH, candidates=GRAPH.candidates[:2])),
        "ExitGraph has 2 candidates and LatencyTable 4 segments",
    ),
    "other kinds": (
        (CALIBRATION, LATENCY, replace(GRAPH, kinds=("kind_0", "conv"))),
        r"ExitGraph\.options and CalibrationTable\.options differ at index 1 .*kind='conv'.*kind='kind_1'",
    ),
    "an option twice": (
        tuple(
            replace(table, options=(table.options[0], *table.options[:1], *table.options[2:]))
            for table in (CALIBRATION, LATENCY)
        )
        + (GRAPH,),
        "name the same option twice",
    ),
    "a segment too few": (
        (CALIBRATION, replace(LATENCY, segments=LATENCY.segments[:3]), GRAPH),
        r"CalibrationTable\.options\[4\] is at candidate 2; LatencyTable has 3 segments, so candidates 0 to 1",
    ),
    "doubles": (
        (replace(CALIBRATION, confidence=CALIBRATION.confidence.astype(float)), LATENCY, GRAPH),
        r"CalibrationTable\.confidence is float64; the compiled module compares float32",
    ),
    "hours for microseconds": (
        (CALIBRATION, replace(LATENCY, scale=1e12), GRAPH),
        "us for 6 samples is beyond what 64-bit picoseconds hold",
    ),
}


@pytest.mark.parametrize(("records", "message"), SEARCHES.values(), ids=list(SEARCHES))
def test_records_that_contradict_each_other(records, message):
    calibration, latency, graph = records
    with pytest.raises(RecordError, match=message):
        search(calibration, latency, graph, ANY)
    with pytest.raises(RecordError, match=message):
        pareto(calibration, latency, graph)


SLAS = {
    "nothing": ({}, "SLA: nothing asked for"),
    "drop in points": ({"max_accuracy_drop": 2.0}, r"SLA: max_accuracy_drop=2\.0 must lie in \[0, 1\]"),
    "drop nan": ({"max_accuracy_drop": math.nan}, r"SLA: max_accuracy_drop=nan must lie in \[0, 1\]"),
    "no time": ({"mean_latency_ms": 0.0}, r"SLA: mean_latency_ms=0\.0 must be a positive number"),
    "negative time": ({"p95_latency_ms": -1.0}, r"SLA: p95_latency_ms=-1\.0 must be a positive number"),
    "nan time": ({"p99_latency_ms": math.nan}, "SLA: p99_latency_ms=nan must be a positive number"),
    "endless time": ({"worst_latency_ms": math.inf}, "SLA: worst_latency_ms=inf must be a positive number"),
    "no deadline": ({"deadline_ms": 0.0}, r"SLA: deadline_ms=0\.0 must be a positive number"),
    "a word": ({"mean_latency_ms": "fast"}, "SLA: mean_latency_ms='fast' is no number"),
    "a yes": ({"max_accuracy_drop": True}, "SLA: max_accuracy_drop=True is no number"),
    "quantile 1": ({"max_accuracy_drop": 0.1, "latency_quantile": 1.0}, r"latency_quantile=1\.0 must lie in \[0"),
    "quantile low": ({"max_accuracy_drop": 0.1, "latency_quantile": 0.1}, r"latency_quantile=0\.1 must lie"),
    "quantile nan": ({"max_accuracy_drop": 0.1, "latency_quantile": math.nan}, "latency_quantile=nan must lie"),
    "confidence 1": ({"max_accuracy_drop": 0.1, "drop_confidence": 1}, "drop_confidence=1 must lie"),
    "negative exits": ({"max_accuracy_drop": 0.1, "max_exits": -1}, "max_exits=-1 must be a whole number, not neg"),
    "half an exit": ({"max_accuracy_drop": 0.1, "max_exits": 1.5}, r"max_exits=1\.5 must be a whole number"),
}


@pytest.mark.parametrize(("lines", "message"), SLAS.values(), ids=list(SLAS))
def test_an_sla_that_cannot_be_meant(lines, message):
    with pytest.raises(SLAError, match=message):
        SLA(**lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p90_latency_ms=0.4", "SLA: there is no 'p90_latency_ms'; an SLA may have max_accuracy_drop, mean"),
        ("mean_latency_ms=0.4, mean_latency_ms=0.5", r"SLA: mean_latency_ms is given twice, 0\.4 and 0\.5"),
        ("mean_latency_ms=soon", "SLA: mean_latency_ms='soon' is no number"),
        ("max_exits=2.5", r"SLA: max_exits='2\.5' is no whole number"),
        ("mean_latency_ms", "SLA: 'mean_latency_ms' is no line of an SLA; write name=value"),
        ("", "SLA: '' is no line of an SLA"),
    ],
)
def test_an_sla_as_text_that_says_nothing(text, message):
    with pytest.raises(SLAError, match=message):
        parse_lines(text)


def test_an_sla_as_text():
    lines = parse_lines(" mean_latency_ms=0.4,max_exits = 2")
    assert lines == {"mean_latency_ms": 0.4, "max_exits": 2}
    assert SLA(**lines) == SLA(mean_latency_ms=0.4, max_exits=2)


SPACES = {
    "no quantile": ({"grid": 0}, "Space: grid=0 must be at least 1 quantile"),
    "must and must not": ({"must": {1}, "must_not": {1}}, "Space: candidate 1 is in must and in must_not"),
    "must beyond the last": ({"must": {7}}, r"Space\.must names candidate 7; there are 3, from 0"),
    "must not below the first": ({"must_not": {-1}}, r"Space\.must_not names candidate -1; there are 3, from 0"),
    "must more than may": ({"must": {0, 1, 2}}, r"Space\.must names 3 candidates and SLA\.max_exits=2: raise it"),
    "must without a kind": ({"must": {1}, "kinds": ()}, r"Space\.must names candidate 1, which has no branch of the"),
    "an unknown kind": ({"kinds": ("conv",)}, r"Space\.kinds names 'conv'; the tables have kind_0, kind_1"),
    "a size without sizes": ({"max_bytes": 9}, "Space: max_bytes=9 without option_bytes"),
    "a negative size": ({"max_bytes": -9, "option_bytes": (1,) * 6}, "Space: max_bytes=-9 must not be negative"),
    "a negative option": ({"option_bytes": (1, 1, 1, 1, -2, 1)}, r"Space: option_bytes\[4\] = -2 must not be negative"),
    "too few sizes": ({"option_bytes": (1, 2)}, r"Space\.option_bytes has 2 sizes for 6 options"),
    "must beyond the size": (
        {"must": {0, 2}, "max_bytes": 3, "option_bytes": (2,) * 6},
        r"Space: no design has exits at \[0, 2\], max_exits=2, max_bytes=3; ask for fewer",
    ),
}


@pytest.mark.parametrize(("limits", "message"), SPACES.values(), ids=list(SPACES))
def test_a_space_that_contradicts_itself_the_tables_or_the_sla(limits, message):
    limits = {name: frozenset(value) if isinstance(value, set) else value for name, value in limits.items()}
    with pytest.raises(SLAError, match=message):
        search(CALIBRATION, LATENCY, GRAPH, replace(ANY, max_exits=2), space=Space(**limits))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: evaluate(CALIBRATION, LATENCY, [(0, 1.5)]), r"exits\[0\] has threshold 1\.5; it must lie in \[0, 1\]"),
        (lambda: evaluate(CALIBRATION, LATENCY, [(0, 0.5), (2, -0.5)]), r"exits\[1\] has threshold -0\.5"),
        (lambda: evaluate(CALIBRATION, LATENCY, [], latency_quantile=1.5), r"latency_quantile=1\.5 must lie"),
        (lambda: evaluate(CALIBRATION, LATENCY, [], drop_confidence=math.nan), "drop_confidence=nan must lie"),
        (lambda: search(CALIBRATION, LATENCY, GRAPH, ANY, time_limit_s=math.nan), "time_limit_s=nan must be a number"),
        (lambda: search(CALIBRATION, LATENCY, GRAPH, ANY, time_limit_s=-1), "time_limit_s=-1 must be a number"),
        (lambda: pareto(CALIBRATION, LATENCY, GRAPH, points=0), "points=0 and time_limit_s=10.0 must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_meant(ask, message):
    with pytest.raises(HapiError, match=message):
        ask()


def test_large_tables_are_checked_in_an_instant():
    """The checks of samples stay out of the way: 55 segments and 108 branches of 100 repeats."""
    calibration, latency, _ = network(0, samples=10, candidates=54)
    filled = replace(latency, segment_samples_us=((2.0,) * 100,) * 55, branch_samples_us=((1.0,) * 100,) * 108)
    assert evaluate(calibration, filled, ()).mean_us == 110.0
