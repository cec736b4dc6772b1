from __future__ import annotations

import numpy as np
import pytest

from hapi_tvm.certify import hold_out
from hapi_tvm.errors import RecordError
from tests.search.instances import network


def rows(table) -> list[tuple]:
    return [tuple(row) for row in np.column_stack([table.confidence, table.prediction, table.label]).tolist()]


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_every_sample_is_in_one_of_the_two(share):
    table, _, _ = network(0, samples=101, candidates=3)
    searched, held_out = hold_out(table, share=share, seed=3)
    assert len(held_out.label) == round(share * 101)
    assert len(set(rows(table))) == 101
    assert sorted(rows(searched) + rows(held_out)) == sorted(rows(table))
    assert (searched.split, held_out.split) == ("search", "certify")
    assert searched.options == held_out.options == table.options


def test_the_seed_alone_decides_which():
    table, other, _ = (network(seed, samples=60, candidates=2)[0] for seed in (0, 0, 1))
    assert rows(hold_out(table, seed=1)[1]) == rows(hold_out(other, seed=1)[1])
    assert rows(hold_out(table, seed=1)[1]) != rows(hold_out(table, seed=2)[1])


@pytest.mark.parametrize(("samples", "share"), [(1, 0.5), (50, 0.001), (50, 1.0)])
def test_neither_may_be_empty(samples, share):
    table, _, _ = network(0, samples=samples, candidates=2)
    with pytest.raises(RecordError, match=rf"share={share} of the {samples} samples .* give more samples"):
        hold_out(table, share=share)
