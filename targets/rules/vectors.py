"""The vector registers that schedules count on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AVX2", "AVX512", "NEON", "SSE", "VectorUnit"]


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """lanes: float32 values of a vector. registers: how many such vectors the processor holds at once."""

    lanes: int
    registers: int

    def with_lanes(self, lanes: int) -> VectorUnit:
        """Vectors of another width: a longer one takes several registers, a shorter one takes one."""
        return VectorUnit(lanes, self.registers * self.lanes // max(self.lanes, lanes))


SSE = VectorUnit(lanes=4, registers=16)
AVX2 = VectorUnit(lanes=8, registers=16)
AVX512 = VectorUnit(lanes=16, registers=32)
NEON = VectorUnit(lanes=4, registers=32)
