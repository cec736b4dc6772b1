"""The surrogate against kernels whose true latency is known: a roofline with an efficiency per operator."""

from __future__ import annotations

import numpy as np
import pytest

from hapi_tvm.errors import RecordError
from hapi_tvm.search.surrogate import KernelFeatures, Surrogate, choose_to_measure

EFFICIENCY = {"conv2d": 1.0, "depthwise": 0.4, "pool": 0.5}
NOISE = 0.08


def convolution(channels, filters, size, window, stride=1, groups=1):
    out = size // stride
    weights = filters * channels // groups * window**2
    return KernelFeatures(
        operator="conv2d" if groups == 1 else "depthwise",
        flops=2.0 * weights * out**2,
        bytes_read=4.0 * (channels * size**2 + weights),
        bytes_written=4.0 * filters * out**2,
        out_channels=filters,
        out_height=out,
        out_width=out,
        in_channels=channels,
        kernel=window**2,
        stride=stride,
        groups=groups,
        vector_width=16,
    )


def pool(channels, size):
    return KernelFeatures(
        operator="pool",
        flops=float(channels * size**2),
        bytes_read=4.0 * channels * size**2,
        bytes_written=4.0 * channels,
        out_channels=channels,
        in_channels=channels,
        kernel=size**2,
        vector_width=16,
    )


def draw(count, rng):
    kernels = []
    for family in rng.integers(4, size=count):
        channels, filters = (int(c) for c in rng.choice([16, 32, 64, 128], size=2))
        size = int(rng.choice([7, 14, 28, 56]))
        if family < 2:
            kernels.append(
                convolution(channels, filters, size, int(rng.choice([1, 3])), int(rng.choice([1, 2])))
            )
        elif family == 2:
            kernels.append(convolution(channels, channels, size, 3, groups=channels))
        else:
            kernels.append(pool(channels, size))
    return kernels


def observe_us(kernels, rng, noise=NOISE):
    """60 GFLOP/s at full efficiency, 8 GB/s, half a microsecond a call; log-normal noise."""
    true_us = [0.5 + k.flops / (60e3 * EFFICIENCY[k.operator]) + k.bytes_moved / 8e3 for k in kernels]
    return np.array(true_us) * np.exp(noise * rng.standard_normal(len(kernels)))


def held_out(count, seed):
    """(true, predicted, sigma) in microseconds, on 100 kernels that the fit on ``count`` never saw."""
    rng = np.random.default_rng(seed)
    seen, unseen = draw(count, rng), draw(100, rng)
    surrogate = Surrogate.fit(seen, observe_us(seen, rng), seed)
    return observe_us(unseen, rng), *surrogate.predict(unseen)


@pytest.mark.parametrize("count, limit", [(5, 0.35), (10, 0.18), (30, 0.12), (80, 0.10)])
def test_median_relative_error_on_unseen_kernels(count, limit):
    true_us, predicted_us, _ = (
        np.concatenate(part) for part in zip(*(held_out(count, s) for s in range(4)), strict=True)
    )
    assert np.median(np.abs(predicted_us / true_us - 1)) < limit


@pytest.mark.parametrize("count", [5, 10, 30, 80])
def test_the_uncertainty_covers_what_it_claims(count):
    true_us, predicted_us, sigma_us = (
        np.concatenate(part) for part in zip(*(held_out(count, s) for s in range(4)), strict=True)
    )
    z = np.abs(true_us - predicted_us) / sigma_us
    assert np.mean(z < 1) > 0.60
    assert np.mean(z < 2) > 0.90


def test_more_kernels_mean_less_uncertainty():
    few, many = (np.median(held_out(count, 0)[2] / held_out(count, 0)[1]) for count in (4, 60))
    assert many < 0.5 * few


def test_one_kernel_is_enough_and_says_that_it_is_little():
    measured = convolution(32, 32, 28, 3)
    surrogate = Surrogate.fit([measured], [50.0], seed=0)
    heavier, lighter = convolution(64, 64, 28, 3), convolution(16, 16, 28, 3)
    median_us, sigma_us = surrogate.predict([measured, heavier, lighter])
    assert median_us[0] == pytest.approx(50.0, rel=0.05)
    assert median_us[2] < median_us[0] < median_us[1]
    assert np.all(sigma_us > 0.3 * median_us)


def test_latency_grows_with_work_where_only_three_were_measured():
    measured = [convolution(16, 16, 28, 3), convolution(32, 32, 14, 3), pool(32, 14)]
    surrogate = Surrogate.fit(measured, [40.0, 38.0, 3.0], seed=0)
    median_us, _ = surrogate.predict([convolution(c, c, 14, 3) for c in (8, 16, 32, 64, 128, 256)])
    assert np.all(np.diff(median_us) > 0)


def test_kernels_that_are_all_equal_predict_themselves():
    same = [convolution(16, 16, 28, 3)] * 12
    median_us, sigma_us = Surrogate.fit(same, [36.0] * 12, seed=0).predict(same)
    assert median_us == pytest.approx([36.0] * 12, rel=1e-3)
    assert np.all(sigma_us < 0.2 * median_us)


def test_an_operator_never_measured_is_less_certain():
    rng = np.random.default_rng(0)
    seen = [k for k in draw(60, rng) if k.operator != "pool"]
    surrogate = Surrogate.fit(seen, observe_us(seen, rng), seed=0)
    median_us, sigma_us = surrogate.predict([pool(64, 28), seen[0]])
    assert sigma_us[0] / median_us[0] > 2 * sigma_us[1] / median_us[1]


def test_copies_alone_still_price_a_convolution():
    copies = [KernelFeatures("elementwise", 0.0, 4.0 * n, 4.0 * n) for n in (100, 1000, 10_000)]
    median_us, _ = Surrogate.fit(copies, [0.2, 1.0, 9.0], seed=0).predict([convolution(64, 64, 28, 3)])
    assert 10 < median_us[0] < 1e6


def test_the_seed_decides_everything():
    first, again, other = held_out(20, 3), held_out(20, 3), held_out(20, 4)
    assert np.array_equal(first[1], again[1]) and np.array_equal(first[2], again[2])
    assert not np.array_equal(first[1], other[1])


def test_predicting_nothing_gives_nothing():
    median_us, sigma_us = Surrogate.fit([pool(16, 7)], [1.0], seed=0).predict([])
    assert median_us.shape == sigma_us.shape == (0,)


@pytest.mark.parametrize(
    "features, median_us, message",
    [
        ([], [], "no kernel was measured"),
        ([pool(16, 7)], [1.0, 2.0], "1 kernels and latencies of shape"),
        ([pool(16, 7), pool(32, 7)], [1.0, 0.0], "kernel 1 has median_us=0.0"),
        ([pool(16, 7)], [float("nan")], "kernel 0 has median_us=nan"),
    ],
)
def test_bad_measurements_are_named(features, median_us, message):
    with pytest.raises(RecordError, match=message):
        Surrogate.fit(features, median_us, seed=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"flops": float("inf")}, "flops=inf"),
        ({"bytes_read": -1.0}, "bytes_read=-1.0"),
        ({"bytes_written": 0.0}, "bytes_written=0"),
        ({"out_channels": 0}, "out_channels=0"),
    ],
)
def test_features_outside_their_range_are_named(change, message):
    valid = {"operator": "dense", "flops": 10.0, "bytes_read": 8.0, "bytes_written": 4.0}
    with pytest.raises(RecordError, match=message):
        KernelFeatures(**{**valid, **change})


def test_choice_starts_with_the_heaviest_and_spreads_over_the_operators():
    kernels = [convolution(16 + i, 16 + i, 28, 3) for i in range(30)] + [
        pool(16, 7),
        convolution(64, 64, 28, 3, groups=64),
    ]
    chosen = choose_to_measure(kernels, budget=3, seed=0)
    assert chosen[0] == 29
    assert {kernels[i].operator for i in chosen} == {"conv2d", "pool", "depthwise"}


def test_choice_keeps_its_budget_and_never_repeats():
    kernels = draw(20, np.random.default_rng(0)) * 2
    for budget in (1, 7, 39, 40, 99):
        chosen = choose_to_measure(kernels, budget, seed=1)
        assert len(chosen) == len(set(chosen)) == min(budget, 40)
        assert chosen == choose_to_measure(kernels, budget, seed=1)


def test_chosen_kernels_teach_more_than_the_lightest_ones():
    rng = np.random.default_rng(5)
    kernels = draw(120, rng)
    true_us = observe_us(kernels, rng, noise=0.0)

    def error(indices):
        surrogate = Surrogate.fit([kernels[i] for i in indices], true_us[list(indices)], seed=0)
        return np.mean(np.abs(np.log(surrogate.predict(kernels)[0] / true_us)))

    assert error(choose_to_measure(kernels, 10, seed=0)) < error(np.argsort(true_us)[:10])


def test_a_budget_below_one_is_refused():
    with pytest.raises(RecordError, match="measure budget is 0"):
        choose_to_measure([pool(16, 7)], 0, seed=0)
