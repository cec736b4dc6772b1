"""PlanMemory and InlinePieces: ``main`` computes the same, in a few storages that no two live tensors share."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.graph import used_vars
from hapi_tvm.passes.inline_pieces import InlinePieces
from hapi_tvm.passes.plan_memory import ALLOC_TENSOR, PlanMemory
from tests.passes import networks

THREE = networks.OPTIONS[::2]


def planned(kept) -> tvm.IRModule:
    passes = [
        InlinePieces(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        PlanMemory(),
    ]
    with networks.HOST:
        return tvm.transform.Sequential(passes)(networks.routed(kept))


def paths(sequence: relax.SeqExpr) -> list[list[relax.VarBinding]]:
    """Every way through a function whose last binding before a result may be an ``If``."""
    found: list[list[relax.VarBinding]] = [[]]
    for block in sequence.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.If):
                inner = paths(binding.value.true_branch) + paths(binding.value.false_branch)
                found = [[*path, *rest, binding] for path in found for rest in inner]
            else:
                found = [[*path, binding] for path in found]
    return found


def storage_sizes(main: relax.Function) -> dict[relax.Var, int]:
    return {
        binding.var: int(binding.value.args[0].values[0])
        for binding in main.body.blocks[0].bindings
        if operator(binding.value) == "relax.memory.alloc_storage"
    }


def test_pieces_stay_callable_and_main_calls_kernels_only():
    module = InlinePieces()(networks.routed(networks.KEPT))
    names = {var.name_hint for var, function in module.functions_items() if isinstance(function, relax.Function)}
    assert names == {"main", "segment_00", "segment_01", "segment_02", "exit_00", "exit_01"}
    called = [
        used.name_hint
        for path in paths(module["main"].body)
        for binding in path
        if operator(binding.value) == "relax.call_tir"
        for used in [binding.value.args[0]]
    ]
    assert called and not set(called) & names


@pytest.mark.parametrize("kept", [networks.KEPT, THREE], ids=["two", "three"])
def test_on_every_path_a_tensor_keeps_its_storage_until_its_last_use(kept):
    main = planned(kept)["main"]
    sizes = storage_sizes(main)
    assert 1 < len(sizes) <= 5
    for path in paths(main.body):
        holds: dict[relax.Var, relax.Var] = {}
        owner: dict[relax.Var, relax.Var] = {}
        for binding in path:
            value = binding.value
            if operator(value) == "relax.memory.alloc_tensor":
                storage = value.args[0]
                shape = [int(extent) for extent in value.args[2].values]
                assert int(np.prod(shape)) * tvm.DataType(value.args[3].value).itemsize <= sizes[storage]
                owner[storage] = holds[binding.var] = binding.var
                continue
            read = [] if isinstance(value, relax.If) else used_vars(value)
            for tensor in {holds[var] for var in read if var in holds}:
                storage = next(
                    entry.value.args[0] for entry in path if entry.var.same_as(tensor)
                )
                assert owner[storage].same_as(tensor), f"{binding.var} reads {tensor} after it was overwritten"
            if isinstance(value, relax.Var) and value in holds:
                holds[binding.var] = holds[value]


@pytest.mark.parametrize("kept", [networks.KEPT, THREE], ids=["two", "three"])
def test_what_leaves_the_function_shares_no_storage(kept):
    main = planned(kept)["main"]
    answers = 0
    for path in paths(main.body):
        values = {binding.var: binding.value for binding in path}
        result = next(binding.value for binding in path if isinstance(binding.value, relax.Tuple))
        for var in used_vars(result):
            while isinstance(values[var], relax.Var):
                var = values[var]
            assert operator(values[var]) == ALLOC_TENSOR
            answers += 1
    assert answers == 2 * (len(kept) + 1)


def test_a_function_without_branches_is_left_alone():
    with networks.HOST:
        before = networks.routed(())
    tvm.ir.assert_structural_equal(PlanMemory()(before), before)
