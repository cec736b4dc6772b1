"""Exit branches: what torch trains is what the compiler attaches, and training learns, repeats and streams."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hapi_tvm.datasets import Split
from hapi_tvm.errors import DataError
from hapi_tvm.heads import HEADS
from hapi_tvm.importing import Backbone
from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.records import Candidate, ExitGraph, Option
from hapi_tvm.reference import RESULT, TorchReference
from hapi_tvm.training import TrainingConfig, train_branches
from tests.passes import networks

CLASSES = networks.CLASSES
GRAPH = ExitGraph(
    model_hash="test",
    classes=CLASSES,
    backbone_flops=1,
    candidates=tuple(
        Candidate(f"exit_{index:02d}", name, (1, channels, 8, 8), "float32", 1, 0.5)
        for index, (name, channels) in enumerate(zip(networks.TENSORS, networks.CHANNELS, strict=True))
    ),
    kinds=("conv", "linear"),
)
CONFIG = TrainingConfig(epochs=4, batch=32, distillation=0.0)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone("tiny", networks.backbone(), CLASSES, networks.IMAGE_SHAPE, "test")


def separable(count: int, seed: int) -> Split:
    """Images of one pattern for each class under noise: easy, with labels spread evenly."""
    random = np.random.default_rng(seed)
    patterns = 2 * np.random.default_rng(1000).standard_normal((CLASSES, 3, 8, 8), dtype=np.float32)
    labels = random.integers(0, CLASSES, count).astype(np.int32)
    noise = random.standard_normal((count, 3, 8, 8), dtype=np.float32)
    return Split(patterns[labels] + noise, labels)


def lived_in(kind: str, channels: int) -> torch.nn.Module:
    """A head whose batch norms have seen data, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        head = HEADS[kind](channels, CLASSES)
        for module in head.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                    torch.nn.init.normal_(module.bias, 0.0, 0.3)
    return head.eval()


@pytest.mark.parametrize("temperature", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("kind", HEADS)
def test_the_attached_branch_computes_what_the_head_does(kind, temperature):
    heads = {Option(index, kind): lived_in(kind, channels) for index, channels in enumerate(networks.CHANNELS)}
    weights = {option: head.export(temperature) for option, head in heads.items()}
    module = AttachExits(networks.TENSORS, weights)(networks.backbone())
    batch = np.concatenate(networks.images(8))
    outputs = TorchReference(module).run(torch.from_numpy(batch))[RESULT]
    tensors = networks.oracle_tensors(batch)
    for option, head in heads.items():
        with torch.no_grad():
            logits = head(tensors[networks.TENSORS[option.candidate]]) / temperature
        expected = torch.softmax(logits, dim=1)
        torch.testing.assert_close(outputs[2 * option.candidate], expected, rtol=1e-5, atol=1e-5)
        # Probabilities fix logits up to one number a row.
        found = torch.log(outputs[2 * option.candidate].double())
        difference = found - logits.double()
        spread = (difference - difference.mean(dim=1, keepdim=True)).abs().amax()
        assert spread < 1e-4 * logits.abs().amax()


@pytest.mark.parametrize("kind", HEADS)
def test_exported_arrays_have_the_documented_shapes(kind):
    weights = lived_in(kind, 8).export(1.0)
    width = 8 if kind == "linear" else 32
    expected = {"weight": (2 * width, CLASSES), "bias": (CLASSES,)}
    if kind == "conv":
        expected |= {"conv_weight": (width, 8, 3, 3), "conv_bias": (width,)}
    assert {name: array.shape for name, array in weights.items()} == expected
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in weights.values())


def accuracies(weights: dict, split: Split) -> dict[Option, float]:
    """Share of ``split`` that each branch answers right, by the torch oracle."""
    tensors = networks.oracle_tensors(split.images)
    found = {}
    for option, own in weights.items():
        logits = networks.oracle_branch(tensors[networks.TENSORS[option.candidate]], own)
        found[option] = float((logits.argmax(dim=1).numpy() == split.labels).mean())
    return found


@pytest.fixture(scope="module")
def trained(backbone):
    return train_branches(backbone, GRAPH, separable(512, seed=0), CONFIG)


def test_every_branch_learns(trained):
    assert tuple(trained) == GRAPH.options
    for option, share in accuracies(trained, separable(256, seed=1)).items():
        assert share > 0.6, f"{option} answers {share:.2f} of unseen images right; chance is {1 / CLASSES}"


def test_the_backbone_teaches_where_labels_do_not(backbone):
    """With distillation 1 the labels weigh nothing: branches follow the backbone."""
    split = separable(512, seed=0)
    wrong = Split(split.images, np.roll(split.labels, 1))
    config = dataclasses.replace(CONFIG, distillation=1.0)
    weights = train_branches(backbone, GRAPH, wrong, config)
    unseen = separable(256, seed=1)
    answers = networks.oracle_tensors(unseen.images)["logits"].argmax(dim=1).numpy()
    for option, share in accuracies(weights, Split(unseen.images, answers)).items():
        assert share > 0.5, f"{option} agrees with the backbone on {share:.2f}"


def test_the_seed_decides_the_weights(backbone, trained):
    split = separable(512, seed=0)
    torch.manual_seed(99)
    again = train_branches(backbone, GRAPH, split, CONFIG)
    other = train_branches(backbone, GRAPH, split, dataclasses.replace(CONFIG, seed=1))
    for option, weights in trained.items():
        for name, array in weights.items():
            np.testing.assert_array_equal(again[option][name], array)
        assert np.abs(other[option]["weight"] - weights["weight"]).max() > 1e-3


def test_the_callers_random_state_is_left_alone(backbone):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train_branches(backbone, GRAPH, separable(64, seed=0), dataclasses.replace(CONFIG, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


class Watched(Split):
    """Notes which images are asked for, and that they are asked for in batches only."""

    def batches(self, size, order=None):
        self.asked.append((size, np.array(order)))
        return super().batches(size, order)


def watched(split: Split) -> Watched:
    copy = Watched(split.images, split.labels)
    object.__setattr__(copy, "asked", [])
    return copy


def test_images_are_read_batch_by_batch_and_the_last_ones_fit_no_weights(backbone):
    split = watched(separable(100, seed=0))
    train_branches(backbone, GRAPH, split, dataclasses.replace(CONFIG, epochs=3, temperature_share=0.2))
    *epochs, (_, held_out) = split.asked
    assert [size for size, _ in epochs] == [32, 32, 32]
    for _, order in epochs:
        assert len(order) == 64 and len(set(order)) == 64 and order.max() < 80, "two full batches of 80"
    assert len({tuple(order) for _, order in epochs}) == 3, "a new order each epoch"
    assert sorted(held_out) == list(range(80, 100))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_are_a_data_error(backbone, count):
    with pytest.raises(DataError, match=f"{count} images are too few"):
        train_branches(backbone, GRAPH, separable(count, seed=0), CONFIG)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 1}, {"distillation": 1.5}, {"distillation": -0.1}])
def test_a_configuration_out_of_range_is_a_data_error(wrong):
    (name,) = wrong
    with pytest.raises(DataError, match=name):
        TrainingConfig(**wrong)
