#!/usr/bin/env python3
"""Train the embedded example's backbone: a ResNet-56 on Fashion-MNIST, written as ONNX.

The network sees 52,000 of the 60,000 training images. The other 8,000, and all 10,000 test images,
belong to the example (``scripts/embed_example.py``), so no stage of the example meets an image that
the backbone was fitted to. The test accuracy printed here is over the 10,000 test images.

Needs Debian's package ``dataset-fashion-mnist``. Resumes from ``--checkpoint`` when killed. ``--blocks 3`` makes a
ResNet-20, the second network of ``scripts/bench_search.py``'s figures.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import numpy as np
import onnx
import torch
from torch import nn

from fashion_mnist import BACKBONE_TRAIN, read_idx

CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, option B: a projection where shapes differ)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: int) -> nn.Module:
    """ResNet-(6 ``blocks`` + 2) for [N, 1, 28, 28] images in [0, 1]; logits [N, 10]. blocks: in each of 3 stages."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(BasicBlock(channels, width, stride if block == 0 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and shift each by up to two pixels. images: [N, 1, 28, 28]."""
    count, _, height, width = images.shape
    mirror = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    top = torch.randint(0, 5, (count, 1, 1), generator=generator) + torch.arange(height)[None, :, None]
    left = torch.randint(0, 5, (count, 1, 1), generator=generator) + torch.arange(width)[None, None, :]
    return padded[torch.arange(count)[:, None, None], 0, top, left][:, None]


def to_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255.0)[:, None]


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    hits = sum(
        int((model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def train(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = read_idx("train")
    images, labels = to_input(images[BACKBONE_TRAIN]), torch.from_numpy(labels[BACKBONE_TRAIN]).long()

    model = resnet(args.blocks).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = -(-len(images) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.epochs * steps, pct_start=0.2
    )
    first = 0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        first = state["epoch"]

    for epoch in range(first, args.epochs):
        model.train()
        began, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(images), generator=generator).split(args.batch):
            x = augment(images[batch], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1}/{args.epochs}: loss {total / len(images):.4f}, {seconds:.0f} s", flush=True)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": generator.get_state(),
            "epoch": epoch + 1,
        }
        torch.save(state, args.checkpoint.with_suffix(".part"))
        args.checkpoint.with_suffix(".part").replace(args.checkpoint)
    return model


def forget_where(path: pathlib.Path) -> None:
    """Take out what the exporter notes beside the graph: stack traces, with paths of the machine that trained."""
    model = onnx.load(path)
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.ClearField("metadata_props")
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("hapi_tvm/data/resnet56_fashion_mnist.onnx"))
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path("backbone.ckpt"))
    parser.add_argument("--blocks", type=int, default=9, help="in each stage: 9 for ResNet-56, 3 for ResNet-20")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = train(args).eval().to(memory_format=torch.contiguous_format)
    images, labels = read_idx("t10k")
    test_accuracy = accuracy(model, to_input(images), torch.from_numpy(labels).long())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model, (torch.zeros(1, 1, 28, 28),), str(args.out), input_names=["image"], output_names=["logits"],
        dynamo=True, external_data=False, optimize=True, verbose=False,
    )
    forget_where(args.out)
    print(json.dumps({"test_accuracy": test_accuracy, "epochs": args.epochs, "seed": args.seed,
                      "size_bytes": args.out.stat().st_size}))


if __name__ == "__main__":
    main()
