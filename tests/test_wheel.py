"""A wheel made from a source distribution carries every module and data file, under the package's name only."""

from __future__ import annotations

import configparser
import pathlib
import subprocess
import sys
import zipfile

import pytest

from tests.checkout import copy_checkout, packaged_files


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """Built by way of the source distribution: what that leaves out is missing here too."""
    packaged = packaged_files(checkout)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive, packaged


def names(archive: zipfile.ZipFile) -> set[str]:
    return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_every_file_is_inside_and_nothing_else(wheel):
    archive, packaged = wheel
    assert names(archive) == packaged, "compare packages and package-data in pyproject.toml"
    assert {"hapi_tvm/passes/pipeline.py", "hapi_tvm/targets/llvm.py"} <= packaged


def test_only_the_package_claims_a_name(wheel):
    """``passes`` and ``targets`` stay out of the reader's site-packages."""
    archive, _ = wheel
    assert {name.partition("/")[0] for name in names(archive)} == {"hapi_tvm"}
    (listed,) = (name for name in archive.namelist() if name.endswith("top_level.txt"))
    assert archive.read(listed).decode().split() == ["hapi_tvm"]


def test_content_is_that_of_the_checkout(wheel, checkout):
    archive, _ = wheel
    for folder, name in (("passes", "route.py"), ("targets", "rules/conv2d.py"), ("hapi_tvm", "errors.py")):
        place = "hapi_tvm" if folder == "hapi_tvm" else f"hapi_tvm/{folder}"
        assert archive.read(f"{place}/{name}") == (checkout / folder / name).read_bytes()


def test_command_is_declared(wheel):
    archive, _ = wheel
    (listed,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(archive.read(listed).decode())
    assert dict(entries["console_scripts"]) == {"hapi-tvm": "hapi_tvm.cli:main"}
