"""The Arm boards that TVM knows by name, and the processors that LLVM knows for them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import tvm
from tvm.target import codegen

from hapi_tvm.errors import TargetError

__all__ = ["TRIPLE", "ArmDevice", "arm_devices", "check_mcpu", "find_device"]

TRIPLE = "aarch64-linux-gnu"
GENERIC = "generic"
_64_BIT = ("aarch64", "arm64")


@dataclass(frozen=True, slots=True)
class ArmDevice:
    """What a kind of board is compiled for.

    triple: LLVM's name of the system. mcpu: LLVM's name of the processor. extensions: of the instruction set,
    beyond those of ``mcpu``, as LLVM writes them ("+crc"). cores: None where it is not known.
    """

    triple: str = TRIPLE
    mcpu: str = GENERIC
    extensions: tuple[str, ...] = ()
    cores: int | None = None


def arm_devices() -> dict[str, ArmDevice]:
    """Every 64-bit Arm CPU among TVM's tags, by tag."""
    tags = {str(tag): target for tag, target in tvm.target.list_tags().items()}
    return {tag: _read(target.attrs) for tag, target in sorted(tags.items()) if _is_64_bit(target)}


def find_device(tag: str) -> ArmDevice:
    """The device behind one of TVM's tags. Raises TargetError where there is none, or none that can be used."""
    known = arm_devices()
    if tag in known:
        return known[tag]
    other = {str(name): target for name, target in tvm.target.list_tags().items()}.get(tag)
    if other is None:
        raise TargetError(
            f"device={tag!r} is none of the {len(known)} Arm devices that TVM knows: {_near(tag, known)}"
            f"give one of {', '.join(known)}, or LLVM's name of its processor as mcpu=..."
        )
    triple = str(other.attrs.get("mtriple", ""))
    if triple.startswith("arm"):
        raise TargetError(
            f"device={tag!r} is a 32-bit system ({triple}), for which apache-tvm has no wheels: where the board has "
            "a 64-bit processor, put a 64-bit system on it and give the processor as mcpu=..."
        )
    raise TargetError(f"device={tag!r} is no Arm CPU ({other}): give one of {', '.join(known)}")


def check_mcpu(mcpu: str, triple: str) -> None:
    """Raise TargetError unless LLVM knows the processor; it would compile for another one, and only warn."""
    known = sorted(str(name) for name in codegen.llvm_get_cpu_archlist(_target(triple)))
    if mcpu not in known:
        raise TargetError(
            f"mcpu={mcpu!r} is none of the {len(known)} processors that LLVM knows for {triple}: {_near(mcpu, known)}"
            f"leave mcpu out for code that runs on each of them. Known are {', '.join(known)}"
        )


def _target(triple: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mtriple": triple})


def _is_64_bit(target: tvm.target.Target) -> bool:
    return target.kind.name == "llvm" and str(target.attrs.get("mtriple", "")).startswith(_64_BIT)


def _read(attributes: Mapping) -> ArmDevice:
    """NEON is a part of every 64-bit Arm processor, and not named."""
    extensions = tuple(str(name) for name in attributes.get("mattr", ()) if str(name) != "+neon")
    cores = int(attributes["num-cores"]) if "num-cores" in attributes else None
    return ArmDevice(str(attributes["mtriple"]), str(attributes.get("mcpu", "")) or GENERIC, extensions, cores)


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=5)
    return f"did you mean {', '.join(near)}? " if near else ""
