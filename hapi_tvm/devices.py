"""What there is to compile for: families, the devices that TVM knows by name, and what can be reached from here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import tvm
from tvm.target import codegen

from hapi_tvm.errors import MissingCompiler
from hapi_tvm.targets.arm_devices import TRIPLE, arm_devices
from hapi_tvm.targets.cross import find_cross_compiler
from hapi_tvm.targets.cuda_arch import cuda_tags
from hapi_tvm.targets.nvcc import find_nvcc

__all__ = ["Family", "families"]

_ARM_TRIPLES = ("aarch64", "arm")


@dataclass(frozen=True, slots=True)
class Family:
    """compiles, runs: whether this machine does, with the next step where it does not. devices: TVM's tags."""

    name: str
    compiles: str
    runs: str
    devices: tuple[str, ...]


def families() -> tuple[Family, ...]:
    tags = _tags()
    return (
        Family("llvm", "yes", _this_processor(), tags["llvm"]),
        Family("arm", _arm_compiler(), _arm_here(), tags["arm"]),
        Family("cuda", _cuda_compiler(), _cuda_here(), tags["cuda"]),
    )


def _tags() -> dict[str, tuple[str, ...]]:
    """TVM's tags by our families; those of other kinds of device are left out."""
    tags = tvm.target.list_tags().items()
    processors = [str(name) for name, target in tags if target.kind.name == "llvm" and not _is_arm(target)]
    return {"llvm": tuple(sorted(processors)), "arm": tuple(arm_devices()), "cuda": tuple(cuda_tags())}


def _is_arm(target: tvm.target.Target) -> bool:
    return str(target.attrs.get("mtriple", "")).startswith(_ARM_TRIPLES)


def _here_is_arm() -> bool:
    return os.uname().machine.startswith(_ARM_TRIPLES)


def _this_processor() -> str:
    return f"here: {codegen.llvm_get_system_cpu()}, {len(os.sched_getaffinity(0))} cores"


def _arm_compiler() -> str:
    try:
        find_cross_compiler(TRIPLE)
    except MissingCompiler:
        return f"no {TRIPLE}-gcc: apt-get install gcc-aarch64-linux-gnu"
    return "yes"


def _arm_here() -> str:
    return _this_processor() if _here_is_arm() else "not here: on a board, over a tracker"


def _cuda_compiler() -> str:
    return "yes" if find_nvcc() else "to source; no nvcc: pip install 'nvidia-cuda-nvcc<14'"


def _cuda_here() -> str:
    device = tvm.cuda(0)
    if device.exist:
        return f"here: {device.device_name}, sm_{str(device.compute_version).replace('.', '')}"
    return "no GPU or driver here: on a board, over a tracker"
