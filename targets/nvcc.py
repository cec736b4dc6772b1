"""NVIDIA's compiler: where it is, and what it compiles for."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

from hapi_tvm.errors import MissingCompiler

__all__ = ["architectures_of", "find_nvcc"]

NAME = "nvcc"
# The wheels unpack their compiler to this place among the installed packages.
WHEELS, IN_WHEELS = "nvidia", pathlib.Path("cu13", "bin", NAME)
ADVICE = (
    "`pip install 'nvidia-cuda-nvcc<14'` brings one, as does the CUDA 13 toolkit; set CUDA_HOME where that is not on "
    "the PATH. Or give compiler='source': the library then holds CUDA source, compiled where it is loaded"
)


def find_nvcc(asked: str | None = None) -> str | None:
    """The path of nvcc, or None where this machine has none.

    asked: its path, or "nvcc" for the one on the PATH, to take no other. Otherwise the PATH is searched, then
    CUDA_HOME and CUDA_PATH, then the wheels. Raises MissingCompiler where ``asked`` is no program of that name.
    """
    if asked is not None:
        return _checked(asked)
    return next((str(path) for path in _places() if os.access(path, os.X_OK)), None)


def _checked(asked: str) -> str:
    found = shutil.which(asked)
    if found is None:
        raise MissingCompiler(f"compiler={asked!r} is no program on this machine: {ADVICE}")
    if pathlib.Path(found).name != NAME:
        raise MissingCompiler(f"compiler={asked!r} must be called {NAME}: TVM calls it by that name. Give its path")
    return found


def _places() -> Iterator[pathlib.Path]:
    if on_the_path := shutil.which(NAME):
        yield pathlib.Path(on_the_path)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if root := os.environ.get(variable):
            yield pathlib.Path(root, "bin", NAME)
    wheels = importlib.util.find_spec(WHEELS)
    for folder in (wheels.submodule_search_locations or ()) if wheels is not None else ():
        yield folder / IN_WHEELS


@functools.cache
def architectures_of(nvcc: str) -> tuple[str, ...]:
    """The architectures that this nvcc compiles for, such as "sm_90", without those of one chip only ("sm_90a").

    Raises MissingCompiler where the program is no nvcc, or a part of it is missing.
    """
    try:
        done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingCompiler(f"{nvcc} does not run as nvcc does ({error}): {ADVICE}") from None
    listed = tuple(line.strip() for line in done.stdout.splitlines() if line.startswith("sm_"))
    if done.returncode != 0 or not listed:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise MissingCompiler(f"{nvcc} lists no architecture and is no nvcc that works ({said[0]}): {ADVICE}")
    return listed
