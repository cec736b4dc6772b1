"""What a report says of the machine that its figures come from."""

from __future__ import annotations

import os
import pathlib
import platform
from dataclasses import dataclass

__all__ = ["MachineFacts", "facts_here"]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """cpu: name of the processor, and of the boards where there are such. system: the operating system."""

    cpu: str
    cores: int
    system: str


def facts_here() -> MachineFacts:
    return MachineFacts(_cpu_name(), os.cpu_count() or 1, platform.platform(terse=True))


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
