"""The reference kernel of a GPU."""

from __future__ import annotations

import os
import tempfile

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.cuda_arch import cuda_tvm_target
from hapi_tvm.targets.cuda_compiler import compile_cuda_library
from hapi_tvm.targets.rpc.reference import plain_product
from hapi_tvm.targets.rules.gpu import schedule_unbound

__all__ = ["gpu_reference_library"]


def gpu_reference_library(arch: str, triple: str, folder: str, size: int, nvcc: str, cc: str | None) -> str:
    """Path in ``folder`` of ``main(A, B, C)``: C = A @ B, float32 [size, size], for GPUs of ``arch`` on hosts of
    ``triple``; compiled if it is not there, with the schedule that a kernel has without trials.

    Raises TargetError where nvcc or the linker refuses.
    """
    machine = triple.partition("-")[0]
    path = os.path.join(folder, f"reference-{arch}-{machine}.so")
    if os.path.exists(path):
        return path
    target = cuda_tvm_target(arch, machine)
    # Under another name first: workers compile side by side.
    fresh = tempfile.mkdtemp(dir=folder)
    try:
        compile_cuda_library(
            schedule_unbound(plain_product(size), target), target, os.path.join(fresh, "fresh.so"), nvcc, cc
        )
    except Exception as error:  # of nvcc's, the linker's or TVM's own type
        raise TargetError(f"the reference kernel does not compile for {arch} on {machine}: {error}") from None
    os.replace(os.path.join(fresh, "fresh.so"), path)
    os.rmdir(fresh)
    return path
