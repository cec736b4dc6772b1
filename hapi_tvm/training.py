"""Train every exit branch on the frozen backbone's features, all of them in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hapi_tvm.datasets import Split
from hapi_tvm.errors import DataError
from hapi_tvm.heads import HEADS
from hapi_tvm.importing import Backbone
from hapi_tvm.progress import bar
from hapi_tvm.records import ExitGraph, Option
from hapi_tvm.reference import RESULT, TorchReference

BranchWeights = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How branches are trained.

    distillation: share of the loss that follows the backbone's probabilities instead of the label, in
    [0, 1]. temperature_share: share of the images, the last ones, that fit no weights; each branch's
    temperature is chosen on them. learning_rate: Adam's, at the peak of a one-cycle schedule.
    """

    epochs: int = 6
    batch: int = 128
    learning_rate: float = 5e-3
    distillation: float = 0.5
    temperature_share: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 2:
            raise DataError(f"training: epochs={self.epochs} and batch={self.batch} must be at least 1 and 2")
        if not 0 <= self.distillation <= 1:
            raise DataError(f"training: distillation={self.distillation} must lie in [0, 1]")


def train_branches(
    backbone: Backbone, graph: ExitGraph, split: Split, config: TrainingConfig
) -> dict[Option, BranchWeights]:
    """Weights of every option, as ``passes.attach_exits.AttachExits`` takes them.

    Features are computed batch by batch by the imported model and never stored, so memory does not grow
    with ``split``. Raises DataError where the split has too few images for one batch.
    """
    if not graph.options:
        return {}
    held_out = max(1, round(config.temperature_share * len(split)))
    fitted = len(split) - held_out
    batch = min(config.batch, fitted)
    if batch < 2:
        raise DataError(f"training: {len(split)} images are too few; give the train split at least 4")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = {
            option: HEADS[option.kind](graph.candidates[option.candidate].shape[1], graph.classes)
            for option in graph.options
        }
    reference = TorchReference(backbone.module, channels_last=True)
    tensors = [candidate.tensor for candidate in graph.candidates]
    optimizer = torch.optim.Adam([p for head in heads.values() for p in head.parameters()], config.learning_rate)
    steps = config.epochs * (fitted // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)

    with bar("train exits", steps) as shown:
        for images, labels in _shuffled_batches(split, fitted, batch, config):
            values = reference.run(images, tensors)
            teacher = torch.softmax(values[RESULT], dim=1)
            loss = sum(
                _loss(head(values[tensors[option.candidate]]), labels, teacher, config.distillation)
                for option, head in heads.items()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            shown.advance()

    for head in heads.values():
        head.eval()
    temperatures = _fit_temperatures(reference, heads, tensors, split, fitted)
    return {option: head.export(temperatures[option]) for option, head in heads.items()}


def _loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, distillation: float
) -> torch.Tensor:
    """Cross entropy against a mixture of the label and the backbone's probabilities."""
    target = (1 - distillation) * nn.functional.one_hot(labels, logits.shape[1]) + distillation * teacher
    return nn.functional.cross_entropy(logits, target)


def _shuffled_batches(
    split: Split, fitted: int, batch: int, config: TrainingConfig
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of the first ``fitted`` images, in a new order each epoch."""
    random = np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        order = random.permutation(fitted)[: fitted // batch * batch]
        for images, labels in split.batches(batch, order):
            yield torch.from_numpy(images), torch.from_numpy(labels).long()


@torch.no_grad()
def _fit_temperatures(
    reference: TorchReference, heads: dict[Option, nn.Module], tensors: list[str], split: Split, fitted: int
) -> dict[Option, float]:
    """The temperature of each branch that gives the least cross entropy on the held-out images."""
    logits: dict[Option, list[torch.Tensor]] = {option: [] for option in heads}
    answers = []
    for images, labels in split.batches(256, np.arange(fitted, len(split))):
        values = reference.run(torch.from_numpy(images), tensors)
        answers.append(torch.from_numpy(labels).long())
        for option, head in heads.items():
            logits[option].append(head(values[tensors[option.candidate]]))
    labels = torch.cat(answers)
    return {option: _best_temperature(torch.cat(parts), labels) for option, parts in logits.items()}


def _best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Temperature scaling, by a search over a logarithmic grid from 1/4 to 4."""
    grid = torch.logspace(-2, 2, 81, base=2)
    losses = torch.stack([nn.functional.cross_entropy(logits / t, labels) for t in grid])
    return float(grid[losses.argmin()])
