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
from hapi_tvm.passes.winograd import transform_weight
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.blocks import child_blocks, traced
from hapi_tvm.targets.rules.conv2d import find_convolution
from hapi_tvm.targets.rules.tiles import accumulator_limit, default_tile, max_accumulators
from hapi_tvm.targets.rules.vectors import AVX2, AVX512, NEON, SSE, VectorUnit

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
    """[N, C / v, H, W, v] to [N, C, H, W]; other arrays as they are."""
    if array.ndim != 5:
        return array
    n, blocks, height, width, lanes = array.shape
    return array.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, height, width)


def convolved(arrays: list[np.ndarray], epilogue: tuple[str, ...] = ("relu",), **arguments) -> np.ndarray:
    """What torch makes of a blocked kernel's inputs; what follows the weights is added."""
    weight = arrays[1].transpose(0, 4, 1, 2, 3)
    weight = torch.tensor(weight.reshape(-1, *weight.shape[2:]))
    expected = torch.nn.functional.conv2d(torch.tensor(unblocked(arrays[0])), weight, **arguments)
    for array in arrays[2:-1]:
        expected = expected + torch.tensor(unblocked(array))
    if "silu" in epilogue:
        expected = torch.nn.functional.silu(expected)
    return (torch.relu(expected) if "relu" in epilogue else expected).numpy()


@pytest.mark.parametrize("unit", [NEON, AVX2, AVX512], ids=["NEON", "AVX2", "AVX-512"])
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
        (3, 16, 28, 7, 2, ("bias", "relu")),
    ],
)
def test_blocked_convolution_equals_torch(inputs_, outputs, size, kernel, stride, epilogue, unit):
    func = samples.blocked(inputs_, outputs, size, kernel, stride, unit.lanes, epilogue)
    arrays = inputs(func)
    schedule = cpu_default_schedule(func, unit, threads=1)
    expected = convolved(arrays, epilogue, stride=stride, padding=kernel // 2)
    assert_same(unblocked(run(schedule.mod, arrays)), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("inputs_", "outputs", "lanes", "size", "arguments"),
    [
        (24, 100, 10, 15, {}),
        (10, 24, 12, 7, {"dilation": 2}),
        (100, 10, 10, 17, {"stride": 2}),
        (32, 64, 16, 28, {"groups": 2}),
        (48, 48, 8, 14, {"groups": 3, "dilation": 2, "stride": 2}),
        (16, 16, 16, 33, {"stride": 2}),
        (512, 48, 16, 4, {}),
        (48, 80, 16, 14, {"kernel": 1}),
        (112, 112, 16, 14, {"kernel": 1}),
        (40, 24, 12, 28, {"kernel": 1}),
        (40, 60, 10, 9, {"kernel": 1, "stride": 2}),
        (64, 96, 16, 8, {"kernel": 1, "groups": 2}),
    ],
)
def test_odd_convolutions_equal_torch(inputs_, outputs, lanes, size, arguments, threads):
    arguments = {"kernel": 3} | arguments
    func = samples.blocked(inputs_, outputs, size, lanes=lanes, **arguments)
    arrays = inputs(func)
    schedule = cpu_default_schedule(func, AVX512, threads)
    kernel = arguments.pop("kernel")
    expected = convolved(arrays, padding=arguments.get("dilation", 1) * (kernel - 1) // 2, **arguments)
    assert_same(unblocked(run(schedule.mod, arrays)), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "lanes", "size", "kernel", "stride", "dilation"),
    [
        (32, 16, 28, 3, 1, 1),
        (24, 12, 15, 3, 2, 1),
        (40, 8, 14, 5, 1, 1),
        (100, 10, 7, 5, 2, 1),
        (32, 16, 56, 3, 1, 2),
    ],
)
def test_depthwise_equals_torch(channels, lanes, size, kernel, stride, dilation, threads):
    func = samples.depthwise(channels, size, stride, lanes, kernel=kernel, dilation=dilation)
    arrays = inputs(func)
    schedule = cpu_default_schedule(func, AVX512, threads)
    padding = dilation * (kernel - 1) // 2
    expected = convolved(arrays, padding=padding, stride=stride, dilation=dilation, groups=channels)
    assert_same(unblocked(run(schedule.mod, arrays)), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    ("inputs_", "outputs", "lanes", "size", "epilogue", "padding"),
    [
        (16, 16, 16, 32, ("bias", "relu"), 1),
        (32, 64, 16, 14, ("bias", "residual", "relu"), 1),
        (24, 36, 12, 15, ("bias", "silu"), 1),
        (64, 32, 8, 7, (), 1),
        (16, 32, 16, 9, ("bias",), 0),
        (128, 128, 16, 16, ("bias", "relu"), 1),
        (24, 100, 10, 28, ("bias", "relu"), 1),
        (100, 20, 10, 7, ("bias", "residual", "relu"), 1),
        (32, 48, 4, 10, ("bias", "relu"), 1),
        (16, 104, 8, 11, ("bias",), 1),
    ],
)
def test_winograd_equals_torch(inputs_, outputs, lanes, size, epilogue, padding, tile, threads):
    func = samples.winograd_blocked(inputs_, outputs, size, tile, lanes, epilogue, padding)
    arrays = inputs(func)
    random = np.random.default_rng(8)
    weight = random.standard_normal((outputs // lanes, inputs_, 3, 3, lanes), dtype=np.float32)
    expected = convolved([arrays[0], weight, *arrays[2:]], epilogue, padding=padding)
    arrays[1] = transform_weight(weight, tile)
    schedule = cpu_default_schedule(func, AVX512, threads)
    found = unblocked(run(schedule.mod, arrays))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


OTHERS = {
    "depthwise": samples.depthwise(32, 14),
    "padded as TensorFlow does": samples.depthwise(32, 14, stride=2, padding=(0, 0, 1, 1)),
    "first convolution": samples.blocked(1, 16, 28),
    "first convolution, then blocked": samples.plain(1, 16, 28, epilogue=("bias", "relu", "block")),
    "plain, ten channels": samples.plain(3, 10, 15),
    "plain, grouped": samples.plain(6, 10, 15, groups=2),
    "plain, depthwise": samples.plain(10, 10, 15, groups=10),
    "plain 1x1": samples.plain(8, 10, 7, kernel=1, epilogue=()),
    "flattened": samples.blocked(16, 16, 14, epilogue=("bias", "flat")),
    "flattened, Winograd": samples.winograd_blocked(16, 16, 14, 2, epilogue=("bias", "flat")),
    "dense": samples.dense(64, 10),
    "dense, whole vectors": samples.dense(128, 32),
    "matmul": samples.matmul(64, 10),
    "matmul, 1000 classes": samples.matmul(128, 1000),
    "matmul, a prime of classes": samples.matmul(64, 37),
    "matmul, a batch": samples.matmul(64, 24, rows=5),
    "mean": samples.mean(2, 14),
    "mean, a prime of blocks": samples.mean(13, 7),
    "mean, ten lanes": samples.mean(4, 7, lanes=10),
    "max": samples.maximum(2, 14),
    "max pool": samples.max_pool(1, 28),
    "max pool, overlapping": samples.max_pool(2, 56, kernel=3, padding=1),
    "max pool, every place": samples.max_pool(2, 14, kernel=3, stride=1, padding=1),
    "softmax": samples.softmax(10),
    "add relu": samples.add_relu(2, 28),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_default_schedule_equals_unscheduled(name, threads):
    func = OTHERS[name]
    schedule = cpu_default_schedule(func, AVX512, threads)
    assert schedule is not None
    arrays = inputs(func)
    assert_same(run(schedule.mod, arrays), run(workload(func), arrays))


@pytest.mark.parametrize("name", OTHERS)
def test_the_kernel_given_is_unchanged(name):
    func = OTHERS[name]
    before = func.script()
    cpu_default_schedule(func, AVX512, threads=1)
    assert func.script() == before


def test_threads_make_the_outer_loops_parallel():
    func = samples.blocked(16, 16, 28)
    assert "T.parallel" in cpu_default_schedule(func, AVX512, threads=2).mod.script()
    assert "T.parallel" not in cpu_default_schedule(func, AVX512, threads=1).mod.script()


def nests(func: tvm.tirx.PrimFunc) -> dict[str, list]:
    """By the name of its block: the loops around each stage of the default schedule."""
    schedule = cpu_default_schedule(func, AVX512, threads=1)
    blocks = {schedule.get(block).name_hint: block for block in child_blocks(schedule)}
    return {
        name: [schedule.get_sref(loop) for loop in schedule.get_loops(block)] for name, block in blocks.items()
    }


@pytest.mark.parametrize("epilogue", [(), ("bias",), ("bias", "residual", "relu"), ("bias", "silu")])
def test_the_epilogue_runs_on_each_tile(epilogue):
    """One stage is left behind the convolution, under the same five tile loops."""
    found = nests(samples.blocked(32, 32, 14, epilogue=epilogue))
    assert list(found)[:3] == ["data_pad", "conv2d_blocked_init", "conv2d_blocked_update"] and len(found) == 4
    _, *behind = found.values()
    for depth in range(5):
        first, *others = (nest[depth] for nest in behind)
        assert all(first.same_as(other) for other in others)


def test_large_maps_are_padded_a_block_of_rows_at_a_time():
    large = nests(samples.blocked(16, 32, 56))
    assert large["data_pad"][1].same_as(large["conv2d_blocked_update"][1])
    small = nests(samples.blocked(16, 32, 14))
    assert not small["data_pad"][0].same_as(small["conv2d_blocked_update"][0])


@pytest.mark.parametrize("size", [2, 4, 7, 14, 15, 28, 56])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("unit", [SSE, NEON, AVX2, AVX512], ids=["SSE", "NEON", "AVX2", "AVX-512"])
@pytest.mark.parametrize("channels", [16, 32, 512, 960])
def test_default_tile_divides_and_fits(channels, unit, kernel, size):
    lanes = unit.lanes
    convolution = find_convolution(traced(samples.blocked(16, channels, size, kernel, lanes=lanes)))
    tile = default_tile(convolution, unit, threads=1)
    assert (channels // lanes) % tile.channels == size % tile.rows == size % tile.columns == 0
    assert tile.row_tiles is None or (size // tile.rows) % tile.row_tiles == 0
    accumulators = tile.channels * tile.rows * tile.columns
    limit = accumulator_limit(convolution, unit)
    assert min(size * size * channels // lanes, 7) <= accumulators <= limit < unit.registers


@pytest.mark.parametrize(
    ("unit", "lanes", "registers", "sums"),
    [(AVX512, 16, 32, 16), (AVX512, 8, 32, 16), (AVX2, 8, 16, 12), (NEON, 4, 32, 16), (SSE, 8, 8, 6), (SSE, 16, 4, 4)],
)
def test_a_longer_vector_takes_several_registers(unit, lanes, registers, sums):
    assert unit.with_lanes(lanes) == VectorUnit(lanes, registers, unit.broadcasts)
    assert max_accumulators(registers) == sums


@pytest.mark.parametrize("size", [16, 32, 56, 112])
def test_default_tile_keeps_two_threads_equally_busy(size):
    tile = default_tile(find_convolution(traced(samples.blocked(16, 32, size))), AVX512, threads=2)
    assert size // tile.rows // tile.row_tiles % 2 == 0


@pytest.mark.parametrize(
    "func",
    [
        samples.blocked(16, 32, 14, epilogue=("bias", "residual", "relu")),
        samples.blocked(16, 32, 15, kernel=1, stride=2, epilogue=()),
        samples.blocked(16, 32, 28),
        samples.winograd_blocked(16, 32, 14, 4),
        samples.plain(1, 16, 14),
        samples.depthwise(32, 7),
    ],
    ids=["residual", "projection", "blocks of rows", "winograd", "first", "depthwise"],
)
def test_sampled_tiles_equal_unscheduled(func):
    """Every space replays with freshly drawn tiles, and keeps the numbers."""
    tvm_compat.import_tensor_intrin()
    context = ms.TuneContext(
        workload(func), target=TARGET, space_generator=cpu_space(func, AVX512, threads=1), rand_state=1
    )
    spaces = context.generate_design_space()
    assert spaces
    arrays = inputs(func)
    expected = run(workload(func), arrays)
    for seed, space in enumerate(spaces, start=1):
        drawn = s_tir.Schedule(workload(func), seed=seed)
        s_tir.schedule.Trace(space.trace.insts, {}).apply_to_schedule(drawn, remove_postproc=False)
        assert_same(run(drawn.mod, arrays), expected)
