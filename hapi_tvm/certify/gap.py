"""What a design lost on the split it was searched on, against what it loses on another."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hapi_tvm.certify.counts import Counts

__all__ = ["Gap", "gap_between"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Accuracy drops against the backbone, as shares of each split's samples.

    gap: unseen less searched; above 0 where the search was too hopeful. standard_error: of the gap, as if the design
    had not been chosen on the first split. It was, so a gap of one or two of them is what to expect.
    """

    searched_drop: float
    unseen_drop: float
    gap: float
    standard_error: float


def gap_between(searched: Counts, unseen: Counts) -> Gap:
    """The samples of the two splits must be different ones."""
    return Gap(
        searched_drop=searched.drop,
        unseen_drop=unseen.drop,
        gap=unseen.drop - searched.drop,
        standard_error=math.sqrt(searched.drop_variance + unseen.drop_variance),
    )
