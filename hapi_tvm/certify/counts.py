"""A design against its backbone on one split, in two counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hapi_tvm.errors import RecordError
from hapi_tvm.records import CalibrationTable, Design, Option

__all__ = ["Counts"]


@dataclass(frozen=True, slots=True)
class Counts:
    """samples: how many. lost: those that the backbone alone answers right; gained: those that the design alone
    does. Everything that a certificate says follows from these."""

    samples: int
    lost: int
    gained: int

    def __post_init__(self):
        if self.samples < 1:
            raise RecordError(f"Counts: samples={self.samples}; give a split with one sample at least")
        if min(self.lost, self.gained) < 0 or self.lost + self.gained > self.samples:
            raise RecordError(
                f"Counts: lost={self.lost} and gained={self.gained} of samples={self.samples}; both are counts, and "
                "no sample is in both"
            )

    @classmethod
    def of_answers(cls, backbone_right: np.ndarray, design_right: np.ndarray) -> Counts:
        """Both bool [N]: whether each sample is answered right, in the same order."""
        if np.ndim(backbone_right) != 1 or np.shape(backbone_right) != np.shape(design_right):
            raise RecordError(
                f"Counts: answers of shapes {np.shape(backbone_right)} (backbone) and {np.shape(design_right)} "
                "(design); give both for the same N samples"
            )
        lost = np.count_nonzero(backbone_right & ~design_right)
        gained = np.count_nonzero(design_right & ~backbone_right)
        return cls(len(backbone_right), int(lost), int(gained))

    @classmethod
    def of_design(cls, table: CalibrationTable, design: Design) -> Counts:
        """Raises RecordError where the table has no column for an exit of the design."""
        columns = [_column(table, Option(placed.candidate, placed.kind)) for placed in design.exits]
        thresholds = np.array([placed.threshold for placed in design.exits], dtype=np.float32)
        fires = np.column_stack([table.confidence[:, columns] >= thresholds, np.ones(len(table.label), dtype=bool)])
        leaves_at = np.array([*columns, len(table.options)])[fires.argmax(axis=1)]
        right = table.right
        return cls.of_answers(right[:, -1], right[np.arange(len(right)), leaves_at])

    @property
    def drop(self) -> float:
        """Accuracy of the backbone less that of the design, as a share of the samples."""
        return (self.lost - self.gained) / self.samples

    @property
    def drop_variance(self) -> float:
        """Of ``drop``, estimated: it is the mean of independent differences that are -1, 0 or 1."""
        return ((self.lost + self.gained) / self.samples - self.drop**2) / self.samples


def _column(table: CalibrationTable, option: Option) -> int:
    if option not in table.options:
        raise RecordError(
            f"CalibrationTable of the split {table.split!r} has no column for a {option.kind} exit at candidate "
            f"{option.candidate}; answer the split with the network that was searched"
        )
    return table.options.index(option)
