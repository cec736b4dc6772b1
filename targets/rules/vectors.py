"""The vector registers that schedules count on."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["AVX2", "AVX512", "NEON", "SSE", "VectorUnit"]


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """lanes: float32 values of a vector. registers: how many such vectors the processor holds at once.

    broadcasts: whether a multiply-add takes one value from memory for all lanes; elsewhere it is loaded into a
    register first.
    """

    lanes: int
    registers: int
    broadcasts: bool = False

    def with_lanes(self, lanes: int) -> VectorUnit:
        """Vectors of another width: a longer one takes several registers, a shorter one takes one."""
        return replace(self, lanes=lanes, registers=self.registers * self.lanes // max(self.lanes, lanes))


SSE = VectorUnit(lanes=4, registers=16)
AVX2 = VectorUnit(lanes=8, registers=16)
AVX512 = VectorUnit(lanes=16, registers=32, broadcasts=True)
NEON = VectorUnit(lanes=4, registers=32)
