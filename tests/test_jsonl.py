"""Files of lines: what a kill or garbage does to one line, and to no other."""

from __future__ import annotations

import json
import multiprocessing
import pathlib

from hypothesis import given
from hypothesis import strategies as st

from hapi_tvm import jsonl


def anything(_value) -> bool:
    return True


def test_missing_file_has_no_values(tmp_path):
    assert jsonl.read_repaired(tmp_path / "none.jsonl", anything) == []


def test_append_then_read(tmp_path):
    path = tmp_path / "a.jsonl"
    for value in ({"x": 1}, [2.5], "three"):
        jsonl.append(path, value)
    assert jsonl.read_repaired(path, anything) == [{"x": 1}, [2.5], "three"]


@given(cut=st.integers(min_value=0, max_value=40))
def test_a_write_cut_anywhere_costs_that_line_only(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    jsonl.append(path, {"first": 1})
    whole = path.read_bytes()
    second = (json.dumps({"second": [1.5, 2.5, 3.5, 4.5]}) + "\n").encode()
    path.write_bytes(whole + second[:cut])
    complete = cut >= len(second) - 1
    expected = [{"first": 1}] + ([{"second": [1.5, 2.5, 3.5, 4.5]}] if complete else [])
    assert jsonl.read_repaired(path, anything) == expected
    # The next line starts a line of its own.
    jsonl.append(path, {"third": 3})
    assert jsonl.read_repaired(path, anything) == [*expected, {"third": 3}]
    assert path.with_name("a.jsonl.broken-1").exists() == (0 < cut and not complete)


def test_garbage_and_invalid_values_are_set_aside(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\xff\x00garbage\n{"n": "two"}\n{"n": 3}\n')
    values = jsonl.read_repaired(path, lambda value: isinstance(value["n"], int))
    assert values == [{"n": 1}, {"n": 3}]
    assert '{"n": "two"}' in (tmp_path / "a.jsonl.broken-1").read_text()
    assert "2 broken lines moved to" in caplog.text
    path.write_text("again\n")
    assert jsonl.read_repaired(path, anything) == []
    assert (tmp_path / "a.jsonl.broken-2").read_text() == "again\n"


def _append_many(folder: pathlib.Path, label: str) -> None:
    for index in range(50):
        with jsonl.locked(folder):
            values = jsonl.read_repaired(folder / "a.jsonl", anything)
            jsonl.replace(folder / "a.jsonl", [json.dumps(value) for value in [*values, f"{label}{index}"]])


def test_two_processes_take_turns(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(tmp_path, label)) for label in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(jsonl.read_repaired(tmp_path / "a.jsonl", anything)) == 100
