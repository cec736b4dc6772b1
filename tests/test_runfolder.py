"""The run folder: whole records whatever happens, broken ones set aside, one owner, one process at a time."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi_tvm.errors import RecordError, RunBusy, RunMismatch
from hapi_tvm.records import CalibrationTable, Certificate, Option
from hapi_tvm.runfolder import RunFolder, digest, read_record

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("hapi_tvm.test")
IDENTITY = {"model": "m1", "target": "llvm", "dataset": "d1", "hapi_tvm": "0.1.0", "tvm": "0.27.0"}
CERTIFICATE = Certificate(0.01, 0.1, "exact binomial", 800, "holds", True, ())
KEY = digest("inputs")


def table(rows: int = 20, value: float = 0.5) -> CalibrationTable:
    return CalibrationTable(
        "calibrate",
        (Option(0, "linear"),),
        np.full((rows, 2), value, np.float32),
        np.zeros((rows, 2), np.int32),
        np.zeros(rows, np.int32),
    )


def opened(path, **changed: str) -> RunFolder:
    return RunFolder(path, LOG).open(IDENTITY | changed)


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "deep" / "run") as folder:
        yield folder


# --- save and load -------------------------------------------------------------------------------


def test_a_record_comes_back_under_its_key_and_no_other(run):
    assert run.load("certificate", Certificate, KEY) is None
    run.save("certificate", CERTIFICATE, KEY)
    assert run.load("certificate", Certificate, KEY) == CERTIFICATE
    assert run.load("certificate", Certificate, digest("other inputs")) is None
    run.save("certificate", CERTIFICATE, digest("other inputs"))
    assert run.load("certificate", Certificate, KEY) is None


def test_records_with_arrays_go_to_npz_the_others_to_json(run):
    run.save("calibration", table(), KEY)
    run.save("certificate", CERTIFICATE, KEY)
    assert run.path("calibration.npz").is_file() and run.path("certificate.json").is_file()
    loaded = run.load("calibration", CalibrationTable, KEY)
    np.testing.assert_array_equal(loaded.confidence, table().confidence)
    with np.load(run.path("calibration.npz"), allow_pickle=False) as file:  # NumPy alone reads it
        np.testing.assert_array_equal(file["label"], table().label)


def test_arrays_come_back_as_they_were(run):
    arrays = {
        "exit_3.linear/weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "file": np.array(1.5),
        "empty": np.zeros((0, 4), np.int64),
    }
    run.save_arrays("heads", arrays, KEY)
    back = run.load_arrays("heads", KEY)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert run.load_arrays("heads", "other") is None
    assert run.load_arrays("absent", KEY) is None


def test_objects_are_no_arrays_and_leave_what_was_there(run):
    run.save_arrays("heads", {"w": np.ones(3)}, KEY)
    with pytest.raises(RecordError, match=r"^arrays\.w is no array of numbers"):
        run.save_arrays("heads", {"w": np.array([None])}, KEY)
    np.testing.assert_array_equal(run.load_arrays("heads", KEY)["w"], np.ones(3))


def test_a_writer_that_fails_leaves_what_was_there(run):
    run.write_text("report.html", "old")
    with pytest.raises(OSError, match="disk full"), run.writing("report.html") as path:
        assert path.suffix == ".html"
        path.write_text("half")
        raise OSError("disk full")
    assert run.path("report.html").read_text() == "old"
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "report.html", "run.json"]


def test_files_get_the_permissions_that_others_expect(run):
    run.write_bytes("model.so", b"\x7fELF")
    plain = run.folder / "plain"
    plain.touch()
    assert run.path("model.so").stat().st_mode == plain.stat().st_mode


def test_a_record_is_read_without_its_run_and_key(run):
    run.save("certificate", CERTIFICATE, KEY)
    assert read_record(run.path("certificate.json"), Certificate) == CERTIFICATE
    with pytest.raises(RecordError, match=r"certificate\.json: holds a Certificate, not a Option$"):
        read_record(run.path("certificate.json"), Option)


# --- killed at any moment ------------------------------------------------------------------------

CHILD = """
import logging, os, signal, sys
import numpy as np
from test_runfolder import IDENTITY, KEY, opened, table
run = opened(sys.argv[1])
first = int(sys.argv[2])
for step in range(first, first + 100_000):
    run.save("calibration", table(rows=1 + step % 5000, value=step % 1000 / 1000), KEY)
    run.save_arrays("heads", {"step": np.array(step), "weight": np.full(20_000, step)}, KEY)
    print(step, flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_killed_process_never_leaves_a_half_written_record(tmp_path):
    """What a save acknowledged is on disk, and what is on disk is whole: the old record or the new."""
    dice = random.Random(0)
    step = 0
    for _ in range(12):
        child = start(CHILD, tmp_path, step)
        assert child.stdout.readline()
        time.sleep(dice.uniform(0, 0.05))
        child.kill()
        acknowledged = max((int(line) for line in child.stdout.read().split("\n")[:-1]), default=step)
        child.wait()
        with opened(tmp_path) as run:
            heads, calibration = run.load_arrays("heads", KEY), run.load("calibration", CalibrationTable, KEY)
        assert not list(tmp_path.glob("*.broken-*")) and not list(tmp_path.glob(".tmp-*"))
        step = int(heads["step"])
        assert step >= acknowledged
        assert (heads["weight"] == step).all()
        written = next(i for i in (step, step + 1) if len(calibration.label) == 1 + i % 5000)
        assert (calibration.confidence == np.float32(written % 1000 / 1000)).all()
        step += 1


@pytest.mark.parametrize(("moment", "expected"), [("half", 1.0), ("synced", 1.0), ("moved", 2.0)])
def test_killed_at_the_worst_moments(tmp_path, moment, expected):
    child = start(
        """
        import os, signal, sys
        import numpy as np
        from pathlib import Path
        from test_runfolder import KEY, opened
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        run = opened(sys.argv[1])
        run.save_arrays("heads", {"value": np.array(1.0)}, KEY)
        if sys.argv[2] == "half":
            Path.write_bytes = lambda path, data: (open(path, "wb", 0).write(data[: len(data) // 2]), die())
        if sys.argv[2] == "synced":
            os.replace = die
        if sys.argv[2] == "moved":
            os.replace = lambda source, target: (os.rename(source, target), die())
        run.save_arrays("heads", {"value": np.array(2.0)}, KEY)
        """,
        tmp_path,
        moment,
    )
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert bool(list(tmp_path.glob(".tmp-*"))) == (moment != "moved")
    with opened(tmp_path) as run:
        assert not list(tmp_path.glob(".tmp-*"))
        assert run.load_arrays("heads", KEY)["value"] == expected


# --- broken records ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_set_aside_and_the_others_are_kept(data):
    """Cut short anywhere, or with any byte of an NPZ changed, a file never gives another record."""
    name = data.draw(st.sampled_from(["calibration.npz", "certificate.json"]))
    with tempfile.TemporaryDirectory() as folder:
        with opened(folder) as run:
            run.save("calibration", table(), KEY)
            run.save("certificate", CERTIFICATE, KEY)
        path = Path(folder, name)
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 2))
        flip = name.endswith("npz") and data.draw(st.booleans())
        damaged = whole[:at]
        if flip:
            damaged += bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
        path.write_bytes(damaged)
        with opened(folder) as run:
            calibration = run.load("calibration", CalibrationTable, KEY)
            certificate = run.load("certificate", Certificate, KEY)
        aside = list(Path(folder).glob("*.broken-*"))
        assert [p.name for p in aside] in ([f"{name}.broken-1"], [] if flip else None)
        if aside:
            assert (calibration is None) == (name == "calibration.npz")
            assert aside[0].read_bytes() == damaged
        if calibration is not None:
            np.testing.assert_array_equal(calibration.confidence, table().confidence)
        assert certificate == (None if name == "certificate.json" else CERTIFICATE)


def test_every_broken_file_gets_a_name_of_its_own_and_a_warning(run, caplog):
    for n in (1, 2, 3):
        run.path("certificate.json").write_text('{"format": 1, "type"')
        assert run.load("certificate", Certificate, KEY) is None
        assert run.path(f"certificate.json.broken-{n}").is_file()
        assert f"set aside as certificate.json.broken-{n}: {run.path('certificate.json')} is" in caplog.text
    run.save("certificate", CERTIFICATE, KEY)
    assert run.load("certificate", Certificate, KEY) == CERTIFICATE


OTHER_FORMAT = '{"format": 2, "type": "", "run": "", "key": "", "record": {}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", OTHER_FORMAT])
def test_json_that_is_no_record_is_set_aside(run, text):
    run.path("certificate.json").write_text(text)
    assert run.load("certificate", Certificate, KEY) is None
    assert run.path("certificate.json.broken-1").read_text() == text


def test_a_record_that_contradicts_itself_is_set_aside(run, caplog):
    run.save("certificate", CERTIFICATE, KEY)
    path = run.path("certificate.json")
    path.write_text(path.read_text().replace("800", '"many"'))
    assert run.load("certificate", Certificate, KEY) is None
    assert "certificate.json.n = 'many' is no int" in caplog.text


# --- whose folder it is --------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTITY)
def test_another_run_is_named_and_nothing_is_touched(tmp_path, name):
    with opened(tmp_path) as run:
        run.save("certificate", CERTIFICATE, KEY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    mismatch = f"{name} is {IDENTITY[name]} there, another here; "
    way_out = f"give another run_dir, or delete this one: rm -r {tmp_path}"
    with pytest.raises(RunMismatch, match=re.escape(mismatch + way_out)):
        opened(tmp_path, **{name: "another"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with opened(tmp_path) as run:  # the refusal left the folder unlocked
        assert run.load("certificate", Certificate, KEY) == CERTIFICATE


def test_a_field_that_only_one_side_has_is_a_mismatch(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(RunMismatch, match="threads is absent there, 2 here;"):
        opened(tmp_path, threads="2")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"identity": 3}', '{"identity": {"model": 1}}', None])
def test_a_broken_run_json_is_made_again_where_the_records_are_of_this_run(tmp_path, text):
    with opened(tmp_path) as run:
        run.save("certificate", CERTIFICATE, KEY)
        run.save("calibration", table(), KEY)
        run.write_text("report.json", "{}")
    whole = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").unlink()
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunMismatch, match=r"no readable run\.json, and its calibration\.npz is of run "):
        opened(tmp_path, model="another")
    with opened(tmp_path) as run:
        assert run.load("certificate", Certificate, KEY) == CERTIFICATE
    assert (tmp_path / "run.json").read_text() == whole
    assert (tmp_path / "run.json.broken-1").exists() == (text is not None)


def test_a_record_from_another_run_counts_as_absent(tmp_path):
    with opened(tmp_path / "a", model="another") as run:
        run.save("certificate", CERTIFICATE, KEY)
    with opened(tmp_path / "b") as run:
        run.path("certificate.json").write_bytes((tmp_path / "a" / "certificate.json").read_bytes())
        assert run.load("certificate", Certificate, KEY) is None
        assert run.path("certificate.json").is_file()


def test_a_run_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunMismatch, match="give another run_dir$"):
        opened(tmp_path / "file")
    with pytest.raises(RunMismatch, match="give another run_dir$"):
        opened(tmp_path / "file" / "run")


# --- one process at a time -----------------------------------------------------------------------


def test_a_folder_that_is_open_is_busy_until_it_is_closed(tmp_path):
    with opened(tmp_path):
        with pytest.raises(RunBusy, match=rf"in use by process {os.getpid()}; wait until it ends, or give "):
            opened(tmp_path)
    opened(tmp_path).close()


def test_a_killed_process_frees_its_folder_even_if_workers_outlive_it(tmp_path):
    child = start(
        """
        import subprocess, sys, time
        from test_runfolder import opened
        run = opened(sys.argv[1])
        worker = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=0)
        print(worker.pid, flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    worker = int(child.stdout.readline())
    try:
        with pytest.raises(RunBusy, match=f"in use by process {child.pid};"):
            opened(tmp_path)
        child.kill()
        child.wait()
        os.kill(worker, 0)
        opened(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        child.kill()
        child.stdout.close()
