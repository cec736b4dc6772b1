"""How TVM compiles kernels for a GPU: by nvcc to machine code, or not at all, which leaves their source."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import tvm

from hapi_tvm.errors import BuildError
from hapi_tvm.targets.cuda_runtime import load_cuda_runtime
from hapi_tvm.targets.rpc.export import export

__all__ = ["compile_cuda_library", "compiler_variables", "cuda_compiler"]

_environment_lock = threading.RLock()
# What TVM puts between the source that it shows and nvcc's own words.
_COMPLAINT = "Compilation error:"


@contextmanager
def cuda_compiler(nvcc: str | None) -> Iterator[None]:
    """In the block TVM compiles kernels by ``nvcc``, with a target in scope; None leaves source in the library.

    Without fast math: its approximate division and exponential would move confidences across their thresholds. Sets
    environment variables, which TVM reads, for the length of the block. Raises BuildError with what nvcc says.
    """
    if nvcc is not None:
        load_cuda_runtime(nvcc)
    with _environment_lock, _variables(compiler_variables(nvcc)):
        try:
            yield
        except RuntimeError as error:
            _, complaint, said = str(error).partition(_COMPLAINT)
            if not complaint:
                raise
            raise BuildError(f"{nvcc} refuses the kernels: {said.strip()[-1000:]}") from None


def compile_cuda_library(
    mod: tvm.IRModule, target: tvm.target.Target, path: str, nvcc: str | None, cc: str | None = None
) -> str:
    """Compile a scheduled kernel to a shared library at ``path``, and return the path.

    nvcc: as above. cc: path of the compiler that links for the target's host; None takes this machine's.
    """
    with target, cuda_compiler(nvcc):
        export(tvm.tirx.build(mod, target=target), path, cc)
    return path


def compiler_variables(nvcc: str | None) -> dict[str, str]:
    """The environment by which TVM compiles as ``cuda_compiler`` says."""
    if nvcc is None:
        return {"TVM_COMPILE_FORCE_FALLBACK": "1"}
    return {
        "TVM_CUDA_COMPILE_MODE": "nvcc",
        "TVM_CUDA_NVCC_NO_FAST_MATH": "1",
        # TVM calls it by its bare name.
        "PATH": os.pathsep.join([str(pathlib.Path(nvcc).parent), os.environ.get("PATH", "")]),
    }


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
