"""The tutorial for CUDA, run as a user runs it, on the small job; without a GPU it compiles only."""

from __future__ import annotations

import os
import subprocess
import sys

import tvm

from tests.checkout import ROOT

SCRIPT = ROOT / "scripts" / "build_cuda.py"


def test_it_is_a_tutorial():
    assert len(SCRIPT.read_text().splitlines()) < 60


def test_it_compiles_the_small_job(copied, tmp_path):
    library = tmp_path / "model_cuda.so"
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--model", str(copied.model), "--data", str(copied.data)),
            *("--run", str(copied.run_dir), "--database", str(copied.database_dir), "--library", str(library)),
            *("--trials", "0", "--epochs", "1", "--arch", "sm_90"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{library}: " in done.stdout and "kernels for sm_90" in done.stdout
    assert "cuda sm_90: " in done.stderr  # machine code or source: the log says which
    assert library.read_bytes().startswith(b"\x7fELF")
    ran = "100 of 100 images leave at the CPU's exit" if tvm.cuda(0).exist else "no GPU here: compiled, not run"
    assert ran in done.stdout
