"""Records: what they refuse, and that JSON and NPZ give back what went in, or name what is wrong."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hapi_tvm import recordio, records
from hapi_tvm.errors import RecordError, SLAError
from hapi_tvm.hashing import digest
from hapi_tvm.records import (
    SLA,
    CalibrationTable,
    Candidate,
    Certificate,
    Design,
    DesignTest,
    ExitGraph,
    KernelLatency,
    Ladder,
    LatencyTable,
    Option,
    PlacedExit,
    Prediction,
)

brief = settings(max_examples=40, deadline=None)

# --- one strategy for each record ----------------------------------------------------------------

names = st.text(max_size=8)
counts = st.integers(0, 2**62)
shares = st.floats(0, 1)
latencies = st.floats(0, 1e9)
anything = st.floats(allow_nan=False)  # infinity included; NaN has its own test, as it differs from itself


def tuples(items, **limits):
    return st.lists(items, **limits).map(tuple)


candidates = st.builds(
    Candidate, name=names, tensor=names, shape=tuples(counts, max_size=4), dtype=names, flops_before=counts,
    flops_share=shares,
)  # fmt: skip
options = st.builds(Option, candidate=st.integers(0, 50), kind=names)
exit_graphs = st.builds(
    ExitGraph, model_hash=names, classes=counts, backbone_flops=counts,
    candidates=tuples(candidates, max_size=3), kinds=tuples(names, max_size=2),
)  # fmt: skip
kernels = st.builds(
    KernelLatency, key=names, name=names, median_us=latencies, sigma_us=latencies,
    samples_us=tuples(latencies, max_size=5),
)  # fmt: skip
slas = st.builds(
    SLA, max_accuracy_drop=shares, mean_latency_ms=st.none() | st.floats(1e-3, 1e3),
    drop_confidence=st.floats(0.5, 0.99), max_exits=st.integers(0, 9),
)  # fmt: skip
predictions = st.builds(
    Prediction,
    **{field.name: anything for field in fields(Prediction) if field.name != "exit_rates"},
    exit_rates=tuples(shares, max_size=4),
)
placed_exits = st.builds(
    PlacedExit, name=names, candidate=counts, kind=names, threshold=shares, flops_share=shares
)
design_tests = st.builds(
    DesignTest, exits=counts, mean_us=latencies, lost=counts, gained=counts, p_value=shares, passed=st.booleans(),
    needs_more=st.none() | counts,
)  # fmt: skip
certificates = st.builds(
    Certificate, epsilon=shares, delta=shares, method=names, n=counts, verdict=names, certified=st.booleans(),
    tests=tuples(design_tests, max_size=3),
)  # fmt: skip
designs = st.builds(
    Design, exits=tuples(placed_exits, max_size=3), sla=slas, predicted=predictions, space=names,
    proven_optimal=st.booleans(), provenance=st.dictionaries(names, names, max_size=3),
)  # fmt: skip
ladders = st.builds(Ladder, designs=tuples(designs, min_size=1, max_size=2))


@st.composite
def latency_tables(draw) -> LatencyTable:
    known = draw(tuples(kernels, min_size=1, max_size=4, unique_by=lambda kernel: kernel.key))
    rows = tuples(st.sampled_from([kernel.key for kernel in known]), max_size=4)
    placed = draw(tuples(options, max_size=3))
    segments = draw(tuples(rows, min_size=1, max_size=4))
    samples = tuples(latencies, min_size=1, max_size=4)
    in_place = draw(st.booleans())
    return LatencyTable(
        target=draw(names), threads=draw(counts), tvm_version=draw(names), kernels=known,
        segments=segments, options=placed, branches=tuple(draw(rows) for _ in placed),
        segment_samples_us=tuple(draw(samples) for _ in segments if in_place),
        branch_samples_us=tuple(draw(samples) for _ in placed if in_place),
        entry_us=draw(latencies), call_us=draw(latencies), gate_us=draw(latencies), scale=draw(latencies),
        schedules=draw(names),
    )  # fmt: skip


@st.composite
def calibration_tables(draw) -> CalibrationTable:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    return CalibrationTable(
        split=draw(names),
        options=tuple(sorted(draw(tuples(options, min_size=shape[1] - 1, max_size=shape[1] - 1)))),
        confidence=draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32))),
        prediction=draw(hnp.arrays(np.int32, shape)),
        label=draw(hnp.arrays(np.int32, shape[0])),
    )


STRATEGIES = {
    CalibrationTable: calibration_tables(),
    Candidate: candidates,
    Certificate: certificates,
    Design: designs,
    DesignTest: design_tests,
    ExitGraph: exit_graphs,
    KernelLatency: kernels,
    Ladder: ladders,
    LatencyTable: latency_tables(),
    Option: options,
    PlacedExit: placed_exits,
    Prediction: predictions,
    SLA: slas,
}
JSON_STRATEGIES = {cls: strategy for cls, strategy in STRATEGIES.items() if recordio.suffix(cls) == ".json"}


def test_every_record_has_a_strategy_here():
    assert {cls.__name__ for cls in STRATEGIES} == set(records.__all__)


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", JSON_STRATEGIES)
@brief
@given(data=st.data())
def test_json_gives_back_the_record(cls, data):
    record = data.draw(STRATEGIES[cls])
    text = json.dumps(recordio.to_json(record), allow_nan=False)
    assert recordio.from_json(cls, json.loads(text)) == record


@brief
@given(record=calibration_tables())
def test_npz_gives_back_the_record(record, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "table.npz"
    path.write_bytes(recordio.encode(record, run="r", key="k"))
    envelope = recordio.read(path)
    back = recordio.decode(CalibrationTable, envelope, "table")
    assert (envelope.run, envelope.key) == ("r", "k")
    assert (back.split, back.options) == (record.split, record.options)
    for name in ("confidence", "prediction", "label"):
        assert getattr(back, name).dtype == getattr(record, name).dtype
        np.testing.assert_array_equal(getattr(back, name), getattr(record, name))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_floats_that_json_lacks(value):
    certificate = Certificate(0.01, value, "exact binomial", 800, "holds", True, ())
    text = json.dumps(recordio.to_json(certificate), allow_nan=False)
    back = recordio.from_json(Certificate, json.loads(text))
    np.testing.assert_equal(back.delta, value)
    assert recordio.to_json(replace(certificate, verdict="inf"))["verdict"] == "inf"


def test_numpy_scalars_become_plain_numbers():
    kernel = KernelLatency("k", "conv", np.float64(1.5), np.float32(0.5), (np.int64(2),))
    assert recordio.to_json(kernel)["samples_us"] == [2.0]
    assert recordio.from_json(KernelLatency, recordio.to_json(kernel)) == kernel


# --- what is wrong is named ----------------------------------------------------------------------


def leaves(values, path=()):
    """Every (path, value) in nested dicts and lists, containers included."""
    yield path, values
    if isinstance(values, dict | list):
        for key, part in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(part, (*path, key))


def parent_of(values, path):
    for key in path[:-1]:
        values = values[key]
    return values


def place(path) -> str:
    """A path as errors write it: fields with dots, items and the keys of mappings in brackets."""
    in_mapping = [False, *(key == "provenance" for key in path[:-1])]
    items = [isinstance(key, int) or inside for key, inside in zip(path, in_mapping, strict=True)]
    return "file" + "".join(f"[{k!r}]" if item else f".{k}" for k, item in zip(path, items, strict=True))


@pytest.mark.parametrize("cls", JSON_STRATEGIES)
@brief
@given(data=st.data())
def test_a_missing_and_an_unknown_field_are_named(cls, data):
    values = recordio.to_json(data.draw(STRATEGIES[cls]))
    name = data.draw(st.sampled_from(sorted(values)))
    shorter = {key: value for key, value in values.items() if key != name}
    with pytest.raises(RecordError, match=f"^file: {cls.__name__} lacks the field '{name}'$"):
        recordio.from_json(cls, shorter, "file")
    with pytest.raises(RecordError, match=f"^file: {cls.__name__} has no field 'surplus'$"):
        recordio.from_json(cls, values | {"surplus": 1}, "file")


@pytest.mark.parametrize("cls", JSON_STRATEGIES)
@brief
@given(data=st.data())
def test_a_value_of_another_type_is_named(cls, data):
    values = recordio.to_json(data.draw(STRATEGIES[cls]))
    path, value = data.draw(st.sampled_from([leaf for leaf in leaves(values) if leaf[0]]))
    wrong = {"of": "another type"} if not isinstance(value, dict) else [1]
    parent_of(values, path)[path[-1]] = wrong
    with pytest.raises(RecordError) as caught:
        recordio.from_json(cls, values, "file")
    assert str(caught.value).startswith((f"{place(path)} = ", f"{place(path)}: "))


def certificate(n=800, verdict="holds") -> Certificate:
    return Certificate(0.01, 0.1, "exact binomial", n, verdict, True, ())


@pytest.mark.parametrize("value", [True, "1", None, [1.0]])
def test_a_number_is_not_read_from_anything_else(value):
    values = recordio.to_json(certificate())
    for name in ("epsilon", "n"):
        with pytest.raises(RecordError, match=rf"Certificate\.{name} = .* is no (float|int)$"):
            recordio.from_json(Certificate, values | {name: value})


def test_a_record_that_is_not_what_it_declares_is_not_written():
    with pytest.raises(RecordError, match=r"^Certificate\.n = 0\.5 is no int$"):
        recordio.to_json(certificate(n=0.5))
    with pytest.raises(RecordError, match=r"^Certificate\.verdict = None is no str$"):
        recordio.to_json(certificate(verdict=None))
    with pytest.raises(RecordError, match=r"^KernelLatency\.samples_us = \[1\.0\] is no tuple"):
        recordio.to_json(KernelLatency("k", "conv", 1.0, 0.1, [1.0]))


def test_what_a_record_refuses_names_the_file():
    values = recordio.to_json(PlacedExit("exit_3", 3, "linear", 0.5, 0.2)) | {"threshold": 1.5}
    with pytest.raises(RecordError, match=r"^design\.json: exit exit_3: threshold=1\.5 is outside \[0, 1\]$"):
        recordio.from_json(PlacedExit, values, "design.json")


# --- what records refuse -------------------------------------------------------------------------


def table(**changed) -> CalibrationTable:
    values = {
        "split": "calibrate",
        "options": (Option(0, "conv"), Option(0, "linear"), Option(4, "linear")),
        "confidence": np.full((5, 4), 0.5, np.float32),
        "prediction": np.zeros((5, 4), np.int32),
        "label": np.zeros(5, np.int32),
    }
    return CalibrationTable(**values | changed)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, np.inf])
def test_confidence_outside_0_and_1(value):
    confidence = np.full((5, 4), 0.5, np.float32)
    confidence[3, 2] = value
    with pytest.raises(RecordError, match=r"confidence\[3, 2\] = .* must lie in \[0, 1\]"):
        table(confidence=confidence)


def test_calibration_tables_that_contradict_themselves():
    match = r"prediction has shape \(5, 3\); 5 labels and 3 options need \(5, 4\)$"
    with pytest.raises(RecordError, match=match):
        table(prediction=np.zeros((5, 3), np.int32))
    with pytest.raises(RecordError, match="'calibrate' is empty"):
        table(confidence=np.zeros((0, 4)), prediction=np.zeros((0, 4)), label=np.zeros(0))
    with pytest.raises(RecordError, match="ordered by candidate"):
        table(options=(Option(4, "conv"), Option(0, "linear"), Option(0, "conv")))


def test_latency_tables_that_contradict_themselves():
    kernel = KernelLatency("k", "conv", 1.0, 0.1)
    with pytest.raises(RecordError, match="segment 1 calls kernel q, which has no latency"):
        LatencyTable("llvm", 1, "0.27", (kernel,), (("k",), ("k", "q")), (), ())
    with pytest.raises(RecordError, match="no segment"):
        LatencyTable("llvm", 1, "0.27", (kernel,), (), (), ())
    with pytest.raises(RecordError, match="samples of 1 segment rows, of 2"):
        LatencyTable("llvm", 1, "0.27", (kernel,), (("k",), ("k",)), (), (), ((1.0,),))
    with pytest.raises(RecordError, match="1 branches for 0 options"):
        LatencyTable("llvm", 1, "0.27", (kernel,), (("k",),), (), (("k",),))


@brief
@given(latency_tables())
def test_latency_sums_follow_their_definition(latency):
    median = {kernel.key: kernel.median_us for kernel in latency.kernels}

    def expected(chains, samples_us):
        if samples_us:
            return [statistics.median(row) for row in samples_us]
        return [latency.scale * sum(median[key] + latency.call_us for key in row) for row in chains]

    first, *later = expected(latency.segments, latency.segment_samples_us)
    assert latency.segment_us.tolist() == pytest.approx([first + latency.entry_us, *later])
    branches = expected(latency.branches, latency.branch_samples_us)
    assert latency.branch_us.tolist() == pytest.approx([total + latency.gate_us for total in branches])


@pytest.mark.parametrize("sla", [
    {}, {"max_accuracy_drop": -0.1}, {"max_accuracy_drop": math.nan}, {"mean_latency_ms": 0.0},
    {"p95_latency_ms": math.inf}, {"max_accuracy_drop": 0.1, "drop_confidence": 1.0},
    {"max_accuracy_drop": 0.1, "max_exits": -1},
])  # fmt: skip
def test_slas_that_contradict_themselves(sla):
    with pytest.raises(SLAError, match="^SLA: "):
        SLA(**sla)


# --- digest --------------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=0, min_side=0, max_side=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
parts = st.recursive(
    scalars | hnp.arrays(st.sampled_from([np.uint8, np.float32]), shapes),
    lambda inner: tuples(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@brief
@given(parts, parts)
def test_digest_is_equal_exactly_where_the_parts_are(one, other):
    assert (digest(one) == digest(other)) == (exactly(one) == exactly(other))


def exactly(part):
    """An independent form whose equality is that of type and content."""
    if isinstance(part, np.ndarray):
        return "array", part.dtype.str, part.shape, part.tobytes()
    if isinstance(part, tuple):
        return "tuple", [exactly(item) for item in part]
    if isinstance(part, dict):
        return "dict", {key: exactly(item) for key, item in part.items()}
    return type(part), np.float64(part).tobytes() if isinstance(part, float) else part


def test_digest_is_the_same_in_every_process_and_version():
    """Golden: a change here orphans every run folder on disk. Made by the left-hand side."""
    array = np.arange(6, dtype="<i8").reshape(2, 3)
    found = digest("model", 1, 1.0, None, True, b"x", array, Option(3, "conv"), {"b": 1, "a": 2})
    assert found == "d92c70a1b9afc8be"


def test_digest_of_an_array_is_of_its_values_not_of_its_memory(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", array.dtype, array.shape)
    mapped[:] = array
    strided = np.repeat(array, 2, axis=2)[..., ::2]
    assert {digest(a) for a in (array, np.asfortranarray(array), strided, mapped)} == {digest(array)}
    other = (array.reshape(3, 2, 4), array.astype(np.float64), array.astype(">f4"), array + 1)
    assert digest(array) not in {digest(a) for a in other}


@pytest.mark.parametrize("part", [object(), {1, 2}, np.array([None]), len])
def test_digest_refuses_what_has_no_stable_bytes(part):
    with pytest.raises(TypeError, match="^digest takes no "):
        digest(part)
