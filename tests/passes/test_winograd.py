"""Winograd's minimal filtering: exact in exact arithmetic, close in float32, and for the convolutions that fit."""

from __future__ import annotations

import kernel_samples as samples
import numpy as np
import pytest
import tvm
from tvm.relax import op

from hapi_tvm.kernels import buffer_shapes, workload
from hapi_tvm.passes import winograd
from tests.passes.graphs import constant, module, random

# Largest error in float32, relative to the largest output: as the module states.
ERRORS = {2: 3e-6, 4: 1.2e-5}


def direct(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The 3x3 convolution in float64, padded by 1. data: [C / a, H, W, a]. weight: [O / v, C, 3, 3, v].

    Returns [O / v, H, W, v].
    """
    blocks, height, width, block = data.shape
    plain = data.astype(np.float64).transpose(0, 3, 1, 2).reshape(blocks * block, height, width)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(plain, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
    return np.einsum("cyxrs,ocrsv->oyxv", windows, weight.astype(np.float64), optimize=True)


@pytest.mark.parametrize("tile", winograd.TILES)
def test_the_matrices_compute_the_direct_sum(tile):
    """One tile in float64: y = A^T ((G g G^T) * (B^T d B)) A is the convolution of d with g."""
    generator = np.random.default_rng(tile)
    data, kernel = generator.standard_normal((tile + 2, tile + 2)), generator.standard_normal((3, 3))
    inputs, weights, outputs = (
        np.array(matrices[tile], np.float64) for matrices in (winograd._INPUT, winograd._WEIGHT, winograd._OUTPUT)
    )
    found = outputs @ ((weights @ kernel @ weights.T) * (inputs @ data @ inputs.T)) @ outputs.T
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3))
    np.testing.assert_allclose(found, np.einsum("yxrs,rs->yx", windows, kernel), rtol=0, atol=1e-13)


@pytest.mark.parametrize("tile", winograd.TILES)
def test_weights_are_transformed_as_the_formula_says(tile):
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 3, 4)).astype(np.float32)
    matrix = np.array(winograd._WEIGHT[tile])
    expected = np.einsum("ar,ocrsv,bs->abocv", matrix, weight.astype(np.float64), matrix)
    found = winograd.transform_weight(weight, tile)
    assert found.shape == ((tile + 2) ** 2, 2, 3, 4) and found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tile", winograd.TILES)
@pytest.mark.parametrize(
    ("inputs", "outputs", "lanes", "size"), [(16, 32, 16, 14), (64, 24, 12, 7), (100, 10, 10, 15), (512, 16, 8, 10)]
)
def test_float32_stays_near_the_direct_sum(inputs, outputs, lanes, size, tile):
    """The kernel as it is written, unscheduled, against float64, within the error that the module states."""
    func = samples.winograd_blocked(inputs, outputs, size, tile, lanes, epilogue=())
    generator = np.random.default_rng(inputs)
    data, _, output = (generator.standard_normal(shape, dtype=np.float32) for shape in buffer_shapes(func))
    weight = generator.standard_normal((outputs // lanes, inputs, 3, 3, lanes), dtype=np.float32)
    arguments = [tvm.runtime.tensor(array) for array in (data, winograd.transform_weight(weight, tile), output)]
    tvm.tirx.build(workload(func), target=samples.TARGET)["main"](*arguments)
    expected = direct(data[0], weight)
    assert np.abs(arguments[-1].numpy()[0] - expected).max() <= ERRORS[tile] * np.abs(expected).max()


def shapes(data: tuple[int, ...], weight: tuple[int, ...], **attributes) -> set[winograd.ConvolutionShape]:
    """Of a network of one blocked convolution."""
    layouts = {"data_layout": "NCHW16c", "kernel_layout": "OIHW16o", "out_layout": "NCHW16c"}
    body = lambda x, emit: emit(op.nn.conv2d(x, constant(random(*weight)), **layouts, **attributes))  # noqa: E731
    return winograd.convolution_shapes(module(body, data))


def test_a_shape_counts_the_padding_with_the_data():
    found = shapes((1, 2, 14, 12, 16), (3, 32, 3, 3, 16), padding=(1, 0, 1, 2))
    assert found == {winograd.ConvolutionShape((1, 2, 16, 14, 16), (3, 32, 3, 3, 16))}


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        ((2, 32, 1, 1, 16), {}),
        ((2, 32, 5, 5, 16), {}),
        ((2, 32, 3, 3, 16), {"strides": 2}),
        ((2, 32, 3, 3, 16), {"dilation": 2}),
        ((2, 16, 3, 3, 16), {"groups": 2}),
    ],
    ids=["1x1", "5x5", "stride", "dilation", "groups"],
)
def test_other_convolutions_have_no_shape(weight, attributes):
    assert shapes((1, 2, 14, 14, 16), weight, **attributes) == set()
