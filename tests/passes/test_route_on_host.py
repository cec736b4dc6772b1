"""Route for a device with a host: the exits are decided there, and one float an exit is copied to it.

The device is the CPU here, under another name: everything crosses as it does to a GPU, and the answers must be those
of the router without a host, bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.passes.pipeline import to_virtual_machine
from hapi_tvm.passes.route import HOST_FUNCTION, Route
from tests.passes import networks
from tests.passes.test_route import DESIGNS, SIZES, answers_of_the_parts, first_to_fire

CPU = tvm.target.Target({"kind": "llvm", "host": {"kind": "llvm"}})
GPU = tvm.target.Target({"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm"}})
TARGETS = {"cpu": CPU, "cuda": GPU}


@pytest.fixture(scope="module", params=DESIGNS, ids=SIZES)
def kept(request):
    return request.param


@pytest.fixture(params=TARGETS)
def target(request) -> tvm.target.Target:
    return TARGETS[request.param]


def calls_in(function: relax.Function) -> list[relax.Call]:
    """Every call, inside branches too."""
    found: list[relax.Call] = []
    relax.analysis.post_order_visit(function, lambda expr: found.append(expr) if isinstance(expr, relax.Call) else None)
    return found


def packed(function: relax.Function, name: str) -> list[relax.Call]:
    """The calls of a function of TVM's runtime."""
    return [call for call in calls_in(function) if getattr(call.op, "global_symbol", "") == name]


def test_result_is_well_formed(kept, target):
    relax.analysis.well_formed(Route(target)(networks.dropped(kept)))


def test_input_is_unchanged(kept, target):
    networks.assert_leaves_its_input_alone(Route(target), networks.dropped(kept))


def test_twice_equals_once(kept, target):
    networks.assert_twice_equals_once(Route(target), networks.dropped(kept))


def test_a_target_without_a_host_changes_nothing(kept):
    tvm.ir.assert_structural_equal(Route(networks.HOST)(networks.dropped(kept)), Route()(networks.dropped(kept)))


def test_one_copy_an_exit_goes_to_the_host_and_the_thresholds(kept, target):
    main = Route(target)(networks.dropped(kept))["main"]
    copies = [call for call in calls_in(main) if call.op.same_as(tvm.ir.Op.get("relax.to_vdevice"))]
    assert all(copy.attrs.dst_vdevice.target.kind.name == "llvm" for copy in copies)
    sizes = [[int(extent) for extent in copy.args[0].ty.shape] for copy in copies]
    assert sorted(sizes) == sorted([[1]] * len(kept) + ([[len(kept)]] if kept else []))


def test_lowered_it_copies_as_often_and_decides_in_the_hosts_memory(kept, target):
    """In the form that the virtual machine runs, behind a pass that rebuilds the module."""
    routed = AttachManifest("{}")(Route(target)(networks.dropped(kept)))
    with target:
        lowered = to_virtual_machine()(routed)
    copies = packed(lowered["main"], "vm.builtin.to_device")
    assert len(copies) == len(kept) + (1 if kept else 0)
    cpu = int(tvm.cpu().dlpack_device_type())
    assert all(int(copy.args[1].value) == cpu for copy in copies)
    storage = tvm.ir.Op.get("relax.vm.alloc_storage")
    devices = [int(call.args[1].value) for call in calls_in(lowered["main"]) if call.op.same_as(storage)]
    # A verdict of each gate, and nothing else, in the second device's memory; the pieces' tensors in the first one's.
    assert devices.count(1) == len(kept) and set(devices) <= {0, 1}
    for name in ("segment_00", *(f"exit_{index:02d}" for index in range(len(kept)))):
        assert not packed(lowered[name], "vm.builtin.to_device")


def test_gates_and_nothing_else_are_functions_of_the_host(kept, target):
    routed = Route(target)(networks.dropped(kept))
    marked = {
        var.name_hint
        for var, function in routed.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc) and function.attrs.get(HOST_FUNCTION)
    }
    assert marked == {f"gate_{index:02d}" for index in range(len(kept))}


@pytest.fixture(scope="module")
def machines(kept) -> tuple[relax.VirtualMachine, relax.VirtualMachine]:
    """The design with a host and without."""
    mod = Route(CPU)(networks.dropped(kept))
    with_host = relax.VirtualMachine(
        tvm.compile(mod, CPU, relax_pipeline=to_virtual_machine()), [tvm.cpu(), tvm.cpu()]
    )
    return with_host, networks.machine(networks.routed(kept))


def test_answers_are_those_of_the_router_without_a_host(kept, machines):
    with_host, plain = machines
    random = np.random.default_rng(3)
    taken = set()
    for x in networks.images(40, seed=4):
        answers = answers_of_the_parts(plain, len(kept), x)
        largest = np.array([answer[1][0] for answer in answers[:-1]], np.float32)
        for thresholds in (
            random.uniform(0.4, 1.0, len(kept)).astype(np.float32),
            np.nextafter(largest, np.float32(2)),
            np.where(random.random(len(kept)) < 0.5, largest, np.float32(np.inf)).astype(np.float32),
        ):
            inputs = (x, thresholds) if kept else (x,)
            probabilities, exit_taken, confidence = networks.call(with_host["main"], *inputs)
            index = first_to_fire(answers, thresholds)
            assert int(exit_taken) == index
            np.testing.assert_array_equal(probabilities, answers[index][0])
            np.testing.assert_array_equal(confidence, answers[index][1])
            taken.add(index)
    assert taken == set(range(len(kept) + 1)), "the thresholds must lead to every exit"
