"""What instructions this machine's processor has, by the names that Linux gives them in /proc/cpuinfo.

The compiler notes what an artifact needs, the runtime compares: an instruction that is missing ends the
process, and no error can be raised then.
"""

from __future__ import annotations

import functools
import pathlib
import platform
from collections.abc import Collection

__all__ = ["flags_of", "missing_flags"]

# LLVM's name of a feature -> the flag, for what a compiler may use in arithmetic code.
_FLAGS = {
    # x86-64
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
    "avx": "avx",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    # AArch64
    "neon": "asimd",
    "lse": "atomics",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


def flags_of(features: Collection[str]) -> tuple[str, ...]:
    """The flags that a processor must show to run code with these LLVM ``features``; sorted."""
    return tuple(sorted(_FLAGS[name] for name in set(features) & set(_FLAGS)))


def missing_flags(needed: Collection[str]) -> tuple[str, ...]:
    """Those of ``needed`` that this processor lacks; none where the system does not say what it has."""
    found = _flags_here()
    return tuple(sorted(set(needed) - found)) if found else ()


@functools.cache
def _flags_here() -> frozenset[str]:
    """Under an emulator the file may be that of the machine below, whose lines have the other name."""
    wanted = "Features" if platform.machine() == "aarch64" else "flags"
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = (line.partition(":") for line in lines)
    listed = (value.split() for name, _, value in fields if name.strip() == wanted)
    return frozenset(flag for flags in listed for flag in flags)
