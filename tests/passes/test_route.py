"""Route: the exit taken is the first that fires, and nothing behind it runs."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hapi_tvm.passes.route import Route
from hapi_tvm.records import Option
from tests.passes import networks

THREE = (Option(0, "linear"), Option(1, "conv"), Option(2, "linear"))
DESIGNS = [(), networks.KEPT, THREE]
SIZES = ["none", "two", "three"]


@I.ir_module
class Before:
    @R.function
    def segment_00(t: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        cut = R.nn.relu(t)
        return cut

    @R.function
    def exit_00(
        t: R.Tensor((1, 2), "float32"),
    ) -> R.Tuple(R.Tensor((1, 2), "float32"), R.Tensor((1,), "float32")):
        p = R.nn.softmax(t)
        c = R.max(p, axis=[1])
        return (p, c)

    @R.function
    def segment_01(
        t: R.Tensor((1, 2), "float32"),
    ) -> R.Tuple(R.Tensor((1, 2), "float32"), R.Tensor((1,), "float32")):
        p = R.nn.softmax(t)
        c = R.max(p, axis=[1])
        return (p, c)


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def gate_00(
        confidence: T.Buffer((1,), "float32"),
        thresholds: T.Buffer((1,), "float32"),
        fires: T.Buffer((), "bool"),
    ):
        T.func_attr({"tirx.noalias": True})
        with T.sblock("fires"):
            T.axis.spatial(1, 0)
            T.reads(thresholds[0], confidence[0])
            T.writes(fires[()])
            fires[()] = thresholds[0] <= confidence[0]

    @R.function
    def main(
        x: R.Tensor((1, 2), "float32"), thresholds: R.Tensor((1,), "float32")
    ) -> R.Tuple(R.Tensor((1, 2), "float32"), R.Tensor((), "int32"), R.Tensor((1,), "float32")):
        cls = Expected
        tensor = cls.segment_00(x)
        pair = cls.exit_00(tensor)
        confidence = pair[1]
        fires = R.call_tir(cls.gate_00, (confidence, thresholds), out_ty=R.Tensor((), "bool"))
        if fires:
            p_0 = pair[0]
            c_0 = pair[1]
            early = (p_0, R.const(0, "int32"), c_0)
            routed = early
        else:
            last = cls.segment_01(tensor)
            p_1 = last[0]
            c_1 = last[1]
            late = (p_1, R.const(1, "int32"), c_1)
            routed = late
        return routed

    @R.function
    def segment_00(t: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        cut = R.nn.relu(t)
        return cut

    @R.function
    def exit_00(
        t: R.Tensor((1, 2), "float32"),
    ) -> R.Tuple(R.Tensor((1, 2), "float32"), R.Tensor((1,), "float32")):
        p = R.nn.softmax(t)
        c = R.max(p, axis=[1])
        return (p, c)

    @R.function
    def segment_01(
        t: R.Tensor((1, 2), "float32"),
    ) -> R.Tuple(R.Tensor((1, 2), "float32"), R.Tensor((1,), "float32")):
        p = R.nn.softmax(t)
        c = R.max(p, axis=[1])
        return (p, c)


def test_main_calls_segments_and_branches_under_gates():
    tvm.ir.assert_structural_equal(Route()(Before), Expected)


@pytest.mark.parametrize("kept", DESIGNS, ids=SIZES)
def test_result_is_well_formed(kept):
    relax.analysis.well_formed(networks.routed(kept))


@pytest.mark.parametrize("kept", DESIGNS, ids=SIZES)
def test_input_is_unchanged(kept):
    networks.assert_leaves_its_input_alone(Route(), networks.dropped(kept))


@pytest.mark.parametrize("kept", DESIGNS, ids=SIZES)
def test_twice_equals_once(kept):
    networks.assert_twice_equals_once(Route(), networks.dropped(kept))


@pytest.fixture(scope="module", params=DESIGNS[1:], ids=SIZES[1:])
def design(request) -> tuple[tvm.IRModule, relax.VirtualMachine, int]:
    """A routed module, compiled, and its number of exits."""
    mod = networks.routed(request.param)
    return mod, networks.machine(mod), len(request.param)


def answers_of_the_parts(machine: relax.VirtualMachine, exits: int, x: np.ndarray) -> list[tuple]:
    """(probabilities, confidence) of every exit and of the backbone's end, called one by one."""
    found, tensor = [], x
    for index in range(exits):
        tensor = networks.call(machine[f"segment_{index:02d}"], tensor)
        found.append(networks.call(machine[f"exit_{index:02d}"], tensor))
    return [*found, networks.call(machine[f"segment_{exits:02d}"], tensor)]


def first_to_fire(answers: list[tuple], thresholds: np.ndarray) -> int:
    """The routing rule in NumPy: the first exit with ``confidence >= threshold``, else the end."""
    confidence = np.array([answer[1][0] for answer in answers[:-1]], np.float32)
    return int(np.argmax(np.append(confidence >= thresholds, True)))


def test_thresholds_decide_the_exit(design):
    """Bit for bit: the router runs the very kernels that the parts run."""
    _, machine, exits = design
    random = np.random.default_rng(5)
    taken = set()
    for x in networks.images(60, seed=1):
        answers = answers_of_the_parts(machine, exits, x)
        largest = np.array([answer[1][0] for answer in answers[:-1]], np.float32)
        for thresholds in (
            random.uniform(0.4, 1.0, exits).astype(np.float32),
            np.nextafter(largest, np.float32(2)),  # a hair above: none fires
            np.where(random.random(exits) < 0.5, largest, np.float32(np.inf)).astype(np.float32),  # equal fires
        ):
            index = first_to_fire(answers, thresholds)
            probabilities, exit_taken, confidence = networks.call(machine["main"], x, thresholds)
            assert int(exit_taken) == index
            np.testing.assert_array_equal(probabilities, answers[index][0])
            np.testing.assert_array_equal(confidence, answers[index][1])
            taken.add(index)
    assert taken == set(range(exits + 1)), "the thresholds must lead to every exit"


def test_infinity_disables_an_exit(design):
    _, machine, exits = design
    for enabled in range(exits + 1):
        thresholds = np.full(exits, np.inf, np.float32)
        thresholds[enabled:] = 0.0
        for x in networks.images(5, seed=2):
            assert int(networks.call(machine["main"], x, thresholds)[1]) == enabled


def test_nothing_behind_an_exit_that_fires_is_run(design):
    mod, machine, exits = design
    # The virtual machine replaces kernels that only reshape; those are never called.
    functions = networks.functions(relax.transform.RewriteDataflowReshape()(mod))
    known = {var.name_hint for var, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    called: list[str] = []

    def note(_function, name: str, before_run: bool, _returned, *_arguments) -> int:
        if before_run and name in known:
            called.append(name)
        return int(relax.VMInstrumentReturnKind.NO_OP)

    machine.set_instrument(note)
    x = networks.images(1)[0]
    for fires in range(exits + 1):
        expected: list[str] = []
        for index in range(min(fires, exits - 1) + 1):
            expected += networks.kernels(functions[f"segment_{index:02d}"])
            expected += networks.kernels(functions[f"exit_{index:02d}"])
            expected.append(f"gate_{index:02d}")
        if fires == exits:
            expected += networks.kernels(functions[f"segment_{exits:02d}"])
        thresholds = np.full(exits, np.inf, np.float32)
        thresholds[fires:] = 0.0
        called.clear()
        networks.call(machine["main"], x, thresholds)
        assert called == expected


def test_without_exits_main_takes_the_image_alone():
    machine = networks.machine(networks.routed(()))
    for x in networks.images(3):
        probabilities, exit_taken, confidence = networks.call(machine["main"], x)
        (expected, _) = networks.oracle_answers(x, ())[0]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
        assert int(exit_taken) == 0 and confidence[0] == probabilities.max()
