"""Samples kept from the search, for the certificate."""

from __future__ import annotations

import numpy as np

from hapi_tvm.errors import RecordError
from hapi_tvm.records import CalibrationTable

__all__ = ["hold_out"]


def hold_out(
    table: CalibrationTable, *, share: float = 0.5, seed: int = 0
) -> tuple[CalibrationTable, CalibrationTable]:
    """The samples to search on and those to certify on: none in both, every one in one of them.

    share: of the samples that are for the certificate, in (0, 1), drawn at random with ``seed``. The same number of
    samples and seed hold out the same ones, whatever is searched. By default half: the search allows for its own
    sampling error, and the test for its own, so neither gains much where the other is starved (ours).
    Raises RecordError where one of the two would be empty.
    """
    samples = len(table.label)
    held_out = round(share * samples)
    if not 0 < held_out < samples:
        raise RecordError(
            f"hold_out: share={share} of the {samples} samples of {table.split!r} leaves {samples - held_out} to "
            f"search on and {held_out} to certify on; give more samples, or a share nearer to 0.5"
        )
    order = np.random.default_rng(seed).permutation(samples)
    return (
        _rows(table, "search", np.sort(order[held_out:])),
        _rows(table, "certify", np.sort(order[:held_out])),
    )


def _rows(table: CalibrationTable, split: str, rows: np.ndarray) -> CalibrationTable:
    return CalibrationTable(split, table.options, table.confidence[rows], table.prediction[rows], table.label[rows])
