"""The choice between the direct sum and Winograd: pure rules on made-up times, and one real network."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hapi_tvm import targets
from hapi_tvm.algorithms import DIRECT, cheapest, drop_slow
from hapi_tvm.backbone_build import tuned_network
from hapi_tvm.choices import FILE, Choice, latest, store
from hapi_tvm.choosing import logit_error
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import import_model
from hapi_tvm.kernel_database import target_folder
from hapi_tvm.passes.winograd import ConvolutionShape
from hapi_tvm.turns import wholes_in_turns

SMALL = ConvolutionShape((1, 1, 10, 10, 16), (1, 16, 3, 3, 16))
LARGE = ConvolutionShape((1, 4, 30, 30, 16), (4, 64, 3, 3, 16))


def test_slow_tiles_are_dropped_and_the_direct_sum_never_is():
    times = {SMALL: {DIRECT: 10.0, 2: 11.4, 4: 11.6}, LARGE: {DIRECT: 10.0, 2: math.inf, 4: math.nan}}
    assert drop_slow(times, 1.15) == {SMALL: frozenset({2}), LARGE: frozenset()}


def test_the_cheapest_tile_must_beat_the_direct_sum_by_the_margin():
    times = {SMALL: {DIRECT: 10.0, 2: 9.8, 4: 9.75}, LARGE: {DIRECT: 10.0, 2: 8.0, 4: 7.0}}
    assert cheapest(times, 0.03) == {LARGE: 4}
    assert cheapest({SMALL: {DIRECT: 10.0, 2: math.nan}}, 0.03) == {}


def test_choices_survive_broken_lines(tmp_path):
    first = Choice("net", "one", {SMALL: {DIRECT: 2.0, 4: 1.0}}, {SMALL: 4})
    second = Choice("net", "two", {SMALL: {DIRECT: 2.0}, LARGE: {}}, {})
    store(tmp_path, first)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"network": "net", "schedules": "x", "shapes": [{"data": 1}]}\n{"torn')
    assert latest(tmp_path, "net") == first
    store(tmp_path, second)
    assert latest(tmp_path, "net") == second
    assert latest(tmp_path, "another") is None


def test_logit_error_sees_what_a_softmax_hides():
    one, other = (np.exp(row) / np.exp(row).sum() for row in (np.array([0.0, 20.0]), np.array([4.0, 20.0])))
    assert np.abs(one - other).max() < 1e-6
    assert logit_error(other, one) == pytest.approx(0.2)
    assert math.isnan(logit_error(np.array([math.nan, 1.0]), one))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.Softmax(dim=1))
    return import_model(network.eval(), torch.randn(1, 3, 28, 28))


def tuned(backbone, database, trials):
    graph = replace(exit_graph(backbone, may_be_empty=True), candidates=())
    return tuned_network(backbone, graph, {}, targets.llvm(), database, trials, 0, {})


def test_without_trials_every_convolution_is_summed_directly(backbone, tmp_path):
    network = tuned(backbone, tmp_path, 0).network
    assert not any("winograd" in kernel.name for kernel in network.kernels.values())


def test_the_choice_agrees_with_the_direct_network_and_is_remembered(backbone, tmp_path):
    target = targets.llvm()
    first = tuned(backbone, tmp_path, 16)
    choice = latest(target_folder(tmp_path, target), _only_network(tmp_path, target))
    (times,) = choice.in_place_us.values()
    assert times == {} or all(value > 0 for value in times.values())
    before = {path: path.read_bytes() for path in _records(tmp_path, target)}
    second = tuned(backbone, tmp_path, 16)
    assert {path: path.read_bytes() for path in _records(tmp_path, target)} == before
    assert set(second.network.kernels) == set(first.network.kernels)
    direct = tuned(backbone, tmp_path / "untuned", 0)
    wholes = [wholes_in_turns([each.network], each.schedules, target)[0] for each in (first, direct)]
    assert logit_error(*(whole.probabilities for whole in wholes)) <= 1e-4


def _records(database, target):
    folder = target_folder(database, target)
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))


def _only_network(database, target) -> str:
    lines = (target_folder(database, target) / FILE).read_text().splitlines()
    return json.loads(lines[-1])["network"]
