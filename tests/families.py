"""Six families of image classifiers, true to structure and small enough to test in seconds.

Every builder returns a torch module in eval mode: random weights from ``seed``, and batch-norm statistics
far from the identity, so that a batch norm folded wrongly shows in the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

CLASSES = 10


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = (kernel - 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride), nn.ReLU())


def classifier(channels: int, classes: int = CLASSES) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(conv_norm_relu(inputs, outputs, 3, stride), *conv_norm(outputs, outputs, 3))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; ReLU6; the shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv_norm(inputs, hidden, 1),
            nn.ReLU6(),
            *conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_norm(hidden, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class InceptionBlock(nn.Module):
    """Four parallel branches, concatenated over channels."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(inputs, width, 1),
                nn.Sequential(conv_norm_relu(inputs, width, 1), conv_norm_relu(width, width, 3)),
                nn.Sequential(conv_norm_relu(inputs, width, 1), conv_norm_relu(width, width, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm_relu(inputs, width, 1)),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class DenseLayer(nn.Module):
    """Batch norm and ReLU before the convolution; the input is kept beside the new channels."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class GatedBlock(nn.Module):
    """A residual block whose channels are weighed by a squeeze-and-excite gate."""

    def __init__(self, channels: int, squeezed: int, gate: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*conv_norm(channels, channels, 3), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            gate,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y * self.gate(y)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build from ``seed`` without touching the caller's random state; batch norms get real statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    return model.eval()


def resnet(blocks: int = 2, in_channels: int = 3, width: int = 8, seed: int = 0) -> nn.Module:
    """Three stages of ``blocks`` basic blocks; 6 * blocks + 2 layers."""

    def build() -> nn.Module:
        layers, channels = [conv_norm_relu(in_channels, width, 3)], width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for block in range(blocks):
                layers.append(BasicBlock(channels, outputs, stride if block == 0 else 1))
                channels = outputs
        return nn.Sequential(*layers, *classifier(channels))

    return seeded(build, seed)


def resnet56(in_channels: int = 3, seed: int = 0) -> nn.Module:
    """ResNet-56 for CIFAR-sized images (He et al. 2016): 27 blocks, widths 16, 32, 64."""
    return resnet(blocks=9, in_channels=in_channels, width=16, seed=seed)


def vgg(seed: int = 0) -> nn.Module:
    """Plain convolutions with bias, max pooling between stages, dropout, and two dense layers."""

    def build() -> nn.Module:
        layers, channels = [], 3
        for width in (8, 16, 32):
            for _ in range(2):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        head = [nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, CLASSES)]
        return nn.Sequential(*layers, *head)

    return seeded(build, seed)


def mobilenet_v2(seed: int = 0) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            *conv_norm(3, 8, 3, 2),
            nn.ReLU6(),
            InvertedResidual(8, 8, 1, 1),
            InvertedResidual(8, 12, 2, 4),
            InvertedResidual(12, 12, 1, 4),
            InvertedResidual(12, 16, 2, 4),
            InvertedResidual(16, 16, 1, 4),
            *conv_norm(16, 64, 1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64, CLASSES),
        )

    return seeded(build, seed)


def inception(seed: int = 0) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            conv_norm_relu(3, 8, 3),
            nn.MaxPool2d(3, 2, 1),
            InceptionBlock(8, 4),
            InceptionBlock(16, 6),
            nn.AvgPool2d(2),
            InceptionBlock(24, 8),
            *classifier(32),
        )

    return seeded(build, seed)


def densenet(seed: int = 0) -> nn.Module:
    def build() -> nn.Module:
        transition = [nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1, bias=False), nn.AvgPool2d(2)]
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            *(DenseLayer(8 + 4 * i, 4) for i in range(4)),
            *transition,
            *(DenseLayer(12 + 4 * i, 4) for i in range(4)),
            nn.BatchNorm2d(28),
            nn.ReLU(),
            *classifier(28),
        )

    return seeded(build, seed)


def squeeze_excite(seed: int = 0) -> nn.Module:
    """Gates of both common kinds: sigmoid, and the piecewise linear one of MobileNetV3."""

    def build() -> nn.Module:
        return nn.Sequential(
            *conv_norm(3, 8, 3),
            nn.Hardswish(),
            GatedBlock(8, 4, nn.Sigmoid()),
            nn.Sequential(*conv_norm(8, 16, 3, 2), nn.SiLU()),
            GatedBlock(16, 4, nn.Hardsigmoid()),
            *classifier(16),
        )

    return seeded(build, seed)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "vgg": vgg,
    "mobilenet_v2": mobilenet_v2,
    "inception": inception,
    "densenet": densenet,
    "squeeze_excite": squeeze_excite,
}

IMAGE_SHAPE = (1, 3, 32, 32)
