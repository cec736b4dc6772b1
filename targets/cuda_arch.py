"""NVIDIA's architectures: which there are, and how TVM compiles for one."""

from __future__ import annotations

import difflib
import functools
import platform

import tvm

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.nvcc import architectures_of

__all__ = ["ARCHITECTURES", "LIMITS", "check_arch", "cuda_tags", "cuda_tvm_target", "find_gpu"]

# What CUDA 13.0's nvcc lists, and before them the older ones among TVM's tags that CUDA 12 still compiles for.
ARCHITECTURES = (
    *("sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72"),
    *("sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90"),
    *("sm_100", "sm_103", "sm_110", "sm_120", "sm_121"),
)
# Names of code for one chip or one family alone: sm_90a, sm_100f.
SUFFIXES = "af"
# Of every architecture here, without asking the driver for more: the least that TVM's tags of such GPUs say.
LIMITS = {"max_shared_memory_per_block": 49152, "max_threads_per_block": 1024, "thread_warp_size": 32}


def cuda_tvm_target(arch: str, machine: str) -> tvm.target.Target:
    """machine: architecture of the host, such as "aarch64"; any processor of it serves."""
    host = {"kind": "llvm"} if machine == platform.machine() else {"kind": "llvm", "mtriple": f"{machine}-linux-gnu"}
    return tvm.target.Target({"kind": "cuda", "arch": arch, **LIMITS, "host": host})


def check_arch(arch: str, nvcc: str | None) -> None:
    """Raise TargetError for an architecture that is unknown to TVM, or to that nvcc where there is one."""
    known = ARCHITECTURES if nvcc is None else architectures_of(nvcc)
    if arch.rstrip(SUFFIXES) in known:
        return
    by = "" if nvcc is None else f" of {nvcc}"
    raise TargetError(
        f"arch={arch!r} is none of the {len(known)} architectures{by}: {_near(arch, known)}Known are "
        f"{', '.join(known)}; `nvidia-smi --query-gpu=compute_cap --format=csv` shows a GPU's, where 9.0 is sm_90"
    )


@functools.cache
def cuda_tags() -> dict[str, tvm.target.Target]:
    """Every GPU of NVIDIA's among TVM's tags, by tag."""
    tags = {str(tag): target for tag, target in tvm.target.list_tags().items()}
    return {tag: target for tag, target in sorted(tags.items()) if target.kind.name == "cuda"}


def find_gpu(tag: str) -> tuple[str, str | None]:
    """Architecture of a tag's GPU, and of its host where the tag tells it. Raises TargetError for an unknown tag."""
    known = cuda_tags()
    if tag not in known:
        raise TargetError(
            f"device={tag!r} is none of the {len(known)} GPUs that TVM knows: {_near(tag, known)}`hapi-tvm targets` "
            "lists them; or give the architecture as arch='sm_90'"
        )
    host = known[tag].host
    triple = "" if host is None else str(host.attrs.get("mtriple", ""))
    return str(known[tag].attrs["arch"]), triple.partition("-")[0] or None


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(near)}? " if near else ""
