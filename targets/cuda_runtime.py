"""TVM's CUDA runtime on a machine without NVIDIA's driver: enough of it to compile, nothing to run.

The wheel's ``libtvm_runtime_cuda.so`` also holds the step that compiles kernels and embeds the binary. It needs the
driver's library, which comes with a GPU only; without it ``import tvm`` leaves the runtime out, without a word, and
what is compiled embeds CUDA source (apache-tvm 0.27.0.post1). Check before removing: on a machine without a driver
``tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True)`` is not None.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

import tvm
from tvm import libinfo

from hapi_tvm.errors import MissingCompiler, TargetError

__all__ = ["DRIVER_FUNCTIONS", "load_cuda_runtime"]

RUNTIME, CUDART, DRIVER = "libtvm_runtime_cuda.so", "libcudart.so.13", "libcuda.so.1"
FACTORY = "ffi.Module.create.cuda"
# What the runtime takes from the driver.
DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY of cuda.h: "the driver that the application has loaded is a stub"

_lock = threading.Lock()


def load_cuda_runtime(nvcc: str) -> None:
    """Load TVM's CUDA runtime, unless it is there; where there is no driver, over a stub of it.

    The stub stays in this process and is never shipped. With it a device is still absent, as it was. nvcc: its path;
    NVIDIA's runtime library is taken from beside it where the system's loader does not know it. Raises TargetError
    where a library is missing, MissingCompiler where no C compiler is there.
    """
    with _lock:
        if tvm.get_global_func(FACTORY, allow_missing=True) is not None:
            return
        if not _loads(DRIVER):
            _load_stub()
        try:
            if not _loads(CUDART):
                ctypes.CDLL(str(_beside(nvcc)), ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(_runtime()))
        except OSError as error:
            raise TargetError(
                f"TVM's CUDA runtime cannot be loaded here: {error}. It takes {CUDART}, which comes with "
                "`pip install 'nvidia-cuda-nvcc<14'` and with the CUDA 13 toolkit; or give compiler='source'"
            ) from None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _beside(nvcc: str) -> pathlib.Path:
    root = pathlib.Path(os.path.realpath(nvcc)).parent.parent
    places = [root / folder / CUDART for folder in ("lib", "lib64")]
    return next((path for path in places if path.exists()), places[0])


def _runtime() -> pathlib.Path:
    places = [folder / RUNTIME for folder in libinfo.package_lib_paths()]
    return next((path for path in places if path.exists()), places[0])


def _load_stub() -> None:
    """A library under the driver's name whose functions fail; its file is gone when this returns."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingCompiler("nvcc takes a C compiler, and neither cc nor gcc is on the PATH: `apt-get install gcc`")
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-") as folder:
        source, stub = pathlib.Path(folder, "stub.c"), pathlib.Path(folder, DRIVER)
        source.write_text("".join(f"int {name}(void) {{ return {STUB_LIBRARY}; }}\n" for name in DRIVER_FUNCTIONS))
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", str(stub), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise MissingCompiler(f"{compiler} does not compile ({done.stderr.strip()}): `apt-get install gcc`")
        ctypes.CDLL(str(stub), ctypes.RTLD_GLOBAL)
