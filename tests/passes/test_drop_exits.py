"""DropExits: what is kept is renumbered, what lies between is merged, what is left out is gone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tvm import relax

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.drop_exits import DropExits
from hapi_tvm.records import Option
from tests.passes import networks

SUBSETS = [
    tuple(Option(candidate, kind) for candidate, kind in enumerate(kinds) if kind)
    for kinds in itertools.product((None, "linear", "conv"), repeat=3)
]


def parts(kept: tuple[Option, ...]) -> tuple[list[list[str]], list[str]]:
    """The segments that each merged one is made of, and the branches, by their names before the pass."""
    ends = [option.candidate for option in kept] + [3]
    begins = [0] + [end + 1 for end in ends[:-1]]
    segments = [[f"segment_{i:02d}" for i in range(a, b + 1)] for a, b in zip(begins, ends, strict=True)]
    return segments, [f"exit_{option.candidate:02d}_{option.kind}" for option in kept]


@pytest.mark.parametrize("kept", SUBSETS, ids=str)
def test_chains_are_joined_and_nothing_else_stays(kept):
    before = networks.functions(networks.lowered())
    after = networks.functions(DropExits(kept)(networks.lowered()))
    segments, branches = parts(kept)
    assert set(after) == {f"segment_{i:02d}" for i in range(len(segments))} | {
        f"exit_{i:02d}" for i in range(len(branches))
    }
    for index, names in enumerate(segments):
        joined = [kernel for name in names for kernel in networks.kernels(before[name])]
        assert networks.kernels(after[f"segment_{index:02d}"]) == joined
    for index, name in enumerate(branches):
        assert networks.kernels(after[f"exit_{index:02d}"]) == networks.kernels(before[name])
    called = {kernel for function in after.values() for kernel in networks.kernels(function)}
    names = {var.name_hint for var in DropExits(kept)(networks.lowered()).get_global_vars()}
    assert names == called | set(after), "a kernel that only a dropped branch called must go"


def test_kernels_are_the_very_same():
    before = {var.name_hint: f for var, f in networks.lowered().functions_items()}
    for var, function in networks.dropped().functions_items():
        if not isinstance(function, relax.Function):
            assert function.same_as(before[var.name_hint])


@pytest.mark.parametrize("kept", [(), networks.KEPT], ids=["none", "two"])
def test_input_is_unchanged(kept):
    networks.assert_leaves_its_input_alone(DropExits(kept), networks.lowered())


@pytest.mark.parametrize("kept", [(), networks.KEPT], ids=["none", "two"])
def test_twice_equals_once(kept):
    networks.assert_twice_equals_once(DropExits(kept), networks.lowered())


@pytest.mark.parametrize("kept", [(), networks.KEPT, networks.OPTIONS[1::2]], ids=["none", "two", "three"])
def test_merged_segments_are_the_backbone(kept):
    machine = networks.machine(networks.dropped(kept))
    for x in networks.images(3):
        *branches, backbone = networks.oracle_answers(x, kept)
        tensor = x
        for index, (expected, _) in enumerate(branches):
            tensor = networks.call(machine[f"segment_{index:02d}"], tensor)
            probabilities, _ = networks.call(machine[f"exit_{index:02d}"], tensor)
            np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
        probabilities, confidence = networks.call(machine[f"segment_{len(kept):02d}"], tensor)
        np.testing.assert_allclose(probabilities, backbone[0], rtol=1e-4, atol=1e-6)
        assert confidence[0] == probabilities.max()


@pytest.mark.parametrize(
    "kept",
    [(Option(2, "linear"), Option(0, "linear")), (Option(1, "linear"), Option(1, "conv"))],
    ids=["backwards", "two at one candidate"],
)
def test_kept_options_stand_in_network_order(kept):
    with pytest.raises(BuildError, match="network order"):
        DropExits(kept)


def test_a_branch_that_the_module_lacks_is_named():
    with pytest.raises(BuildError, match="exit_07_linear"):
        DropExits([Option(7, "linear")])(networks.lowered())
