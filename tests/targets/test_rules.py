"""Every rule computes what the kernel means, on the shapes that small CNNs have."""

from __future__ import annotations

import kernel_samples as samples
import numpy as np
import pytest
import torch
import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm import tvm_compat
from hapi_tvm.kernels import buffer_shapes, workload
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.blocks import child_blocks, traced
from hapi_tvm.targets.rules.conv2d import MAX_ACCUMULATORS, default_tile, find_convolution

TARGET = samples.TARGET


def run(mod: tvm.IRModule, arrays: list[np.ndarray]) -> np.ndarray:
    arguments = [tvm.runtime.tensor(array.copy()) for array in arrays]
    tvm.tirx.build(mod, target=TARGET)["main"](*arguments)
    return arguments[-1].numpy()


def inputs(func: tvm.tirx.PrimFunc) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.standard_normal(shape, dtype=np.float32) for shape in buffer_shapes(func)]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def unblocked(array: np.ndarray) -> np.ndarray:
    n, blocks, height, width, lanes = array.shape
    return array.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, height, width)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize(
    ("inputs_", "outputs", "size", "kernel", "stride", "epilogue"),
    [
        (16, 16, 28, 3, 1, ("bias", "relu")),
        (16, 32, 28, 3, 2, ("bias", "relu")),
        (32, 32, 14, 3, 1, ("bias", "residual", "relu")),
        (64, 64, 7, 3, 1, ("bias", "silu")),
        (16, 32, 15, 3, 2, ("bias",)),
        (16, 32, 28, 1, 2, ("bias",)),
        (32, 16, 7, 1, 1, ()),
        (1, 16, 28, 3, 1, ("bias", "relu")),
    ],
)
def test_blocked_convolution_equals_torch(inputs_, outputs, size, kernel, stride, epilogue, lanes):
    func = samples.blocked(inputs_, outputs, size, kernel, stride, lanes, epilogue)
    arrays = inputs(func)
    schedule = cpu_default_schedule(func, lanes, threads=1)
    assert schedule is not None
    data, weight = unblocked(arrays[0]), arrays[1].transpose(0, 5, 1, 4, 2, 3)
    weight = weight.reshape(outputs, inputs_, kernel, kernel)
    expected = torch.nn.functional.conv2d(torch.tensor(data), torch.tensor(weight), stride=stride, padding=kernel // 2)
    for step, array in zip([s for s in epilogue if s in ("bias", "residual")], arrays[2:], strict=False):
        assert step in ("bias", "residual")
        expected = expected + torch.tensor(unblocked(array))
    if "silu" in epilogue:
        expected = torch.nn.functional.silu(expected)
    if "relu" in epilogue:
        expected = torch.relu(expected)
    assert_same(unblocked(run(schedule.mod, arrays)), expected.numpy())


OTHERS = {
    "depthwise": samples.depthwise(32, 14),
    "depthwise stride 2, odd": samples.depthwise(32, 15, stride=2),
    "first convolution": samples.plain(1, 16, 28),
    "first convolution, then blocked": samples.plain(1, 16, 28, epilogue=("bias", "relu", "block")),
    "plain, ten channels": samples.plain(3, 10, 15),
    "plain 1x1": samples.plain(8, 10, 7, kernel=1, epilogue=()),
    "flattened": samples.blocked(16, 16, 14, epilogue=("bias", "flat")),
    "dense": samples.dense(64, 10),
    "dense, whole vectors": samples.dense(128, 32),
    "mean": samples.mean(2, 14),
    "max": samples.maximum(2, 14),
    "max pool": samples.max_pool(1, 28),
    "softmax": samples.softmax(10),
    "add relu": samples.add_relu(2, 28),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_default_schedule_equals_unscheduled(name, threads):
    func = OTHERS[name]
    schedule = cpu_default_schedule(func, 16, threads)
    assert schedule is not None
    arrays = inputs(func)
    assert_same(run(schedule.mod, arrays), run(workload(func), arrays))


@pytest.mark.parametrize("name", OTHERS)
def test_the_kernel_given_is_unchanged(name):
    func = OTHERS[name]
    before = func.script()
    cpu_default_schedule(func, 16, threads=1)
    assert func.script() == before


def test_threads_make_the_outer_loops_parallel():
    func = samples.blocked(16, 16, 28)
    assert "T.parallel" in cpu_default_schedule(func, 16, threads=2).mod.script()
    assert "T.parallel" not in cpu_default_schedule(func, 16, threads=1).mod.script()


@pytest.mark.parametrize("epilogue", [(), ("bias",), ("bias", "residual", "relu"), ("bias", "silu")])
def test_the_epilogue_runs_on_each_tile(epilogue):
    """One block is left behind the convolution, under the same four tile loops."""
    schedule = cpu_default_schedule(samples.blocked(32, 32, 14, epilogue=epilogue), 16, threads=1)
    names = [schedule.get(block).name_hint for block in child_blocks(schedule)]
    assert names[:3] == ["data_pad", "conv2d_NCHWc_init", "conv2d_NCHWc_update"] and len(names) == 4
    nests = [schedule.get_loops(schedule.get_sblock(name)) for name in names[1:]]
    for depth in range(4):
        first, *others = (schedule.get_sref(nest[depth]) for nest in nests)
        assert all(first.same_as(other) for other in others)


@pytest.mark.parametrize("size", [7, 14, 15, 28])
@pytest.mark.parametrize("channels", [16, 32, 64])
def test_default_tile_divides_and_fits(channels, size):
    convolution = find_convolution(traced(samples.blocked(16, channels, size)))
    tile = default_tile(convolution, 16)
    assert (channels // 16) % tile.channels == size % tile.rows == size % tile.columns == 0
    assert 5 <= tile.channels * tile.rows * tile.columns <= MAX_ACCUMULATORS


@pytest.mark.parametrize(
    "func",
    [
        samples.blocked(16, 32, 14, epilogue=("bias", "residual", "relu")),
        samples.blocked(16, 32, 15, kernel=1, stride=2, epilogue=()),
        samples.plain(1, 16, 14),
        samples.depthwise(32, 7),
    ],
    ids=["residual", "projection", "first", "depthwise"],
)
def test_sampled_tiles_equal_unscheduled(func):
    """Every space replays with freshly drawn tiles, and keeps the numbers."""
    tvm_compat.import_tensor_intrin()
    context = ms.TuneContext(
        workload(func), target=TARGET, space_generator=cpu_space(func, 16, threads=1), rand_state=1
    )
    spaces = context.generate_design_space()
    assert spaces
    arrays = inputs(func)
    expected = run(workload(func), arrays)
    for seed, space in enumerate(spaces[:6], start=1):
        drawn = s_tir.Schedule(workload(func), seed=seed)
        s_tir.schedule.Trace(space.trace.insts, {}).apply_to_schedule(drawn, remove_postproc=False)
        assert_same(run(drawn.mod, arrays), expected)
