"""What a compiled module holds for the GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import tvm

__all__ = ["DeviceCode", "device_code"]

# A definition; each kernel is declared once more before it.
_KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^;{]*\{")


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """kernels: their names in the order of the source. source: CUDA."""

    kernels: tuple[str, ...]
    source: str


def device_code(executable: tvm.runtime.Executable) -> DeviceCode:
    """The kernels that ``executable`` launches on a GPU; none where it was compiled for a CPU.

    Of a module that was just compiled: machine code that was loaded from a file says nothing of its source.
    """
    source = "\n".join(module.inspect_source("cuda") for module in _cuda_modules(executable.mod))
    return DeviceCode(tuple(_KERNEL.findall(source)), source)


def _cuda_modules(module: tvm.runtime.Module) -> list[tvm.runtime.Module]:
    own = [module] if module.kind == "cuda" else []
    return [*own, *(found for imported in module.imports for found in _cuda_modules(imported))]
