"""Cuts: against brute force on random graphs, and sane on the six families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch.utils.flop_counter import FlopCounterMode
from tvm import relax
from tvm.relax import op

from hapi_tvm.errors import NoLegalCut
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import import_model
from hapi_tvm.passes.dataflow import bindings, operator
from hapi_tvm.passes.find_cuts import ELEMENTWISE, NEGLIGIBLE_SHARE, find_cuts
from hapi_tvm.passes.flops import CONVOLUTIONS, MOVES, REDUCTIONS, op_flops
from hapi_tvm.passes.graph import used_vars
from hapi_tvm.records import Candidate
from tests.families import FAMILIES, IMAGE_SHAPE, resnet56
from tests.passes.graphs import constant, module, random, without_aliases

KERNEL = random(3, 3, 3, 3)


def convolved(emit, data) -> relax.Var:
    return emit(op.nn.conv2d(data, constant(KERNEL), padding=1))


@pytest.fixture(scope="module")
def backbones():
    return {family: import_model(build(), torch.zeros(IMAGE_SHAPE)) for family, build in FAMILIES.items()}


def path_avoids(mod: tvm.IRModule, name: str) -> bool:
    """Brute force: whether the result can be reached from the input without the tensor ``name``."""
    function = mod["main"]
    reached = set(function.params)
    for binding in bindings(function):
        if binding.var.name != name and reached & set(used_vars(binding.value)):
            reached.add(binding.var)
    return function.body.body in reached


def random_network(seed: int) -> tvm.IRModule:
    """Convolutions of recent values and of concatenated pairs of them; what nothing reads is dropped."""
    rng = np.random.default_rng(seed)
    joining = constant(random(3, 6, 3, 3))

    def body(x, emit):
        values = [convolved(emit, x), convolved(emit, x)]
        for _ in range(12):
            if rng.random() < 0.6:
                values.append(convolved(emit, values[-1 - int(rng.random() < 0.3)]))
            else:
                left, right = rng.choice(len(values[-4:]), size=2, replace=False)
                joined = emit(op.concat([values[-4:][left], values[-4:][right]], axis=1))
                values.append(emit(op.nn.conv2d(joined, joining, padding=1)))
        return emit(op.mean(values[-1], axis=[2, 3]))

    return relax.transform.DeadCodeElimination()(module(body))


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_the_dominators(seed):
    mod = random_network(seed)
    maps = [binding.var.name for binding in bindings(mod["main"]) if binding.var.ty.ndim == 4]
    expected = [name for name in maps if not path_avoids(mod, name)]
    assert [cut.tensor for cut in find_cuts(mod)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_separates_its_network(backbones, family):
    mod = backbones[family].module
    for cut in find_cuts(mod):
        assert not path_avoids(mod, cut.tensor)
        assert len(cut.shape) == 4 and cut.shape[0] == 1 and cut.shape[2] * cut.shape[3] > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_cut_splits_a_chain_of_elementwise_operators(backbones, family):
    function = backbones[family].module["main"]
    for cut in find_cuts(backbones[family].module):
        readers = [b for b in bindings(function) if cut.tensor in {var.name for var in used_vars(b.value)}]
        assert len(readers) > 1 or operator(readers[0].value) not in ELEMENTWISE


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_rise_by_more_than_the_negligible(backbones, family):
    shares = [cut.flops_share for cut in find_cuts(backbones[family].module)]
    assert 0 < shares[0] and shares[-1] <= 1
    assert all(np.diff(shares) >= NEGLIGIBLE_SHARE)


def test_tensors_per_family(backbones):
    """The kinds of tensor that end a block: activation, sum, concatenation, pool; and how many there are."""
    kinds = {
        family: [cut.tensor.rpartition("_")[0] for cut in find_cuts(backbone.module)]
        for family, backbone in backbones.items()
    }
    assert kinds["resnet"] == ["relu"] * 7
    assert kinds["vgg"] == ["relu", "max_pool2d"] * 3
    assert kinds["inception"] == ["relu", "max_pool2d", "concat", "avg_pool2d", "concat"]
    assert kinds["squeeze_excite"] == ["divide", "add", "multiply", "add"]
    assert set(kinds["mobilenet_v2"]) == {"clip", "add"}
    assert kinds["densenet"].count("concat") == 6


def test_resnet56_has_its_27_blocks_and_the_stem():
    backbone = import_model(resnet56(), torch.zeros(IMAGE_SHAPE))
    assert len(find_cuts(backbone.module)) == 28


def test_resnet_with_activations_in_front_is_cut_between_blocks():
    """Behind a block, the readers of the sum are elementwise, but the next cut lies behind a convolution."""

    def body(x, emit):
        value = convolved(emit, x)
        for _ in range(3):
            scaled = emit(op.multiply(value, constant(random(1, 3, 1, 1))))
            value = emit(op.add(value, convolved(emit, emit(op.nn.relu(scaled)))))
        return emit(op.mean(value, axis=[2, 3]))

    assert len(find_cuts(module(body))) == 4


@pytest.mark.parametrize("spacing", [0.1, 0.25, 0.6])
def test_spacing_thins(backbones, spacing):
    mod = backbones["densenet"].module
    everything, thinned = find_cuts(mod), find_cuts(mod, spacing=spacing)
    assert set(thinned) < set(everything)
    assert all(np.diff([cut.flops_share for cut in thinned]) >= spacing)


def test_the_module_is_unchanged(backbones):
    backbone = backbones["resnet"]
    text = backbone.module.script()
    find_cuts(backbone.module)
    assert backbone.module.script() == text


def test_no_legal_cut_inside_branches():
    def body(x, emit):
        pooled = emit(op.mean(convolved(emit, x), axis=[2, 3]))
        return emit(op.add(pooled, emit(op.mean(x, axis=[2, 3]))))

    with pytest.raises(NoLegalCut, match="inside branches that join"):
        find_cuts(without_aliases(module(body)))


def test_no_legal_cut_without_a_feature_map():
    def body(x, emit):
        flat = emit(op.reshape(x, (1, 108)))
        hidden = emit(op.nn.relu(emit(op.matmul(flat, constant(random(108, 8))))))
        return emit(op.matmul(hidden, constant(random(8, 4))))

    with pytest.raises(NoLegalCut, match="none is a feature map"):
        find_cuts(module(body))


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_convolutions_and_products_agree_with_torch(backbones, family):
    with FlopCounterMode(display=False) as counter:
        FAMILIES[family]()(torch.zeros(IMAGE_SHAPE))
    heavy = ("relax.nn.conv2d", "relax.matmul")
    values = [binding.value for binding in bindings(backbones[family].module["main"])]
    assert sum(op_flops(value) for value in values if operator(value) in heavy) == counter.get_total_flops()


@pytest.mark.parametrize("name", sorted(ELEMENTWISE | MOVES | REDUCTIONS | CONVOLUTIONS))
def test_names_in_the_tables_are_operators_of_tvm(name):
    assert tvm.ir.Op.get(name).name == name


def test_flops_of_the_light_operators():
    x = relax.Var("x", relax.TensorType((1, 4, 6, 6), "float32"))
    builder = relax.BlockBuilder()
    flops = {
        "relu": op_flops(builder.normalize(op.nn.relu(x))),
        "pool": op_flops(builder.normalize(op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1)))),
        "mean": op_flops(builder.normalize(op.mean(x, axis=[2, 3]))),
        "reshape": op_flops(builder.normalize(op.reshape(x, (1, 144)))),
        "constant": op_flops(constant(1.0)),
    }
    assert flops == {"relu": 144, "pool": 36 * 9, "mean": 144, "reshape": 0, "constant": 0}


def test_exit_graph(backbones):
    backbone = backbones["resnet"]
    graph = exit_graph(backbone)
    cuts = find_cuts(backbone.module)
    assert [candidate.name for candidate in graph.candidates] == [f"exit_{i:02d}" for i in range(len(cuts))]
    last = cuts[-1]
    assert graph.candidates[-1] == Candidate(
        "exit_06", last.tensor, last.shape, "float32", last.flops_before, last.flops_share
    )
    assert (graph.model_hash, graph.classes) == (backbone.hash, backbone.classes)
    assert graph.candidates[-1].flops_before == pytest.approx(last.flops_share * graph.backbone_flops)
    assert len(exit_graph(backbone, spacing=0.3, kinds=("linear",)).options) < len(graph.options) / 2
