"""Which designs may be chosen at all, whatever they are good for."""

from __future__ import annotations

from dataclasses import dataclass

from hapi_tvm.errors import SLAError

__all__ = ["Space"]


@dataclass(frozen=True, slots=True)
class Space:
    """Subsets of candidates, a kind and a threshold for each; how many exits is up to ``SLA.max_exits``.

    shared: all exits of a design have one threshold, a quantile of the confidences of all options. Otherwise
    each has its own, a quantile of its option's. grid: how many quantiles, evenly spaced; equal ones are one.
    kinds: the branch kinds that may be placed; None allows all. must, must_not: candidates (indices) that
    carry an exit in every design, or in none.
    option_bytes: what each option adds to the artifact, one number an option; needed with max_bytes, the most
    that a design's options may add together.
    """

    shared: bool = False
    grid: int = 32
    kinds: tuple[str, ...] | None = None
    must: frozenset[int] = frozenset()
    must_not: frozenset[int] = frozenset()
    option_bytes: tuple[int, ...] = ()
    max_bytes: int | None = None

    def __post_init__(self):
        if self.grid < 1:
            raise SLAError(f"Space: grid={self.grid} must be at least 1 quantile")
        if both := self.must & self.must_not:
            raise SLAError(f"Space: candidate {min(both)} is in must and in must_not; take it out of one")
        if self.max_bytes is not None and self.max_bytes < 0:
            raise SLAError(f"Space: max_bytes={self.max_bytes} must not be negative")
        if self.max_bytes is not None and not self.option_bytes:
            raise SLAError(f"Space: max_bytes={self.max_bytes} without option_bytes; give the size of each option")
        for index, size in enumerate(self.option_bytes):
            if size < 0:
                raise SLAError(f"Space: option_bytes[{index}] = {size} must not be negative")
