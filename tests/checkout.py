"""The checkout, and a second copy of it: what a build needs, and nothing that a build or a run has left behind."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from bench_runtimes import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
FOLDERS = {"hapi_tvm": "hapi_tvm", "passes": "hapi_tvm/passes", "targets": "hapi_tvm/targets"}
"""Folder of the checkout to its place in an installed package."""


def report_of(script: str, *options: str) -> Any:
    """The JSON that a benchmark under ``scripts/`` prints, run as a user runs it, on one thread."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *options],
        env=environment(1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def copy_checkout(destination: pathlib.Path) -> pathlib.Path:
    """Copy the three folders and the files of the build to ``destination``; returns it."""
    for folder in FOLDERS:
        leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
        shutil.copytree(ROOT / folder, destination / folder, ignore=leftovers)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination / name)
    return destination


def packaged_files(root: pathlib.Path) -> set[str]:
    """Every file of the three folders, under the path that it must have in a wheel."""
    return {
        f"{place}/{path.relative_to(root / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file()
    }
