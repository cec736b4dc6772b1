"""Exit branches as torch modules, for training. ``passes/attach_exits.py`` holds the same in Relax.

Batch norms train faster than bare layers; ``export`` folds them away, and the temperature with them,
so the compiled branch is a convolution, two poolings and a matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CONV_CHANNELS = (32, 128)  # least and most channels of the small convolution


class LinearHead(nn.Module):
    """Global mean and maximum of each channel, one dense layer. [B, C, H, W] -> logits [B, K]."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * channels, affine=False)
        self.dense = nn.Linear(2 * channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))

    def export(self, temperature: float) -> dict[str, np.ndarray]:
        """weight [2C, K] and bias [K]: what gives logits divided by ``temperature``."""
        scale = 1.0 / torch.sqrt(self.norm.running_var + self.norm.eps)
        weight = self.dense.weight * scale
        bias = self.dense.bias - weight @ self.norm.running_mean
        return {"weight": _array(weight.T / temperature), "bias": _array(bias / temperature)}


class ConvHead(nn.Module):
    """A 3x3 convolution of stride 2 with ReLU, then a LinearHead. [B, C, H, W] -> logits [B, K]."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        least, most = CONV_CHANNELS
        width = min(max(2 * channels, least), most)
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.linear = LinearHead(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.norm(self.conv(x))))

    def export(self, temperature: float) -> dict[str, np.ndarray]:
        """``conv_weight`` [D, C, 3, 3] and ``conv_bias`` [D], and what LinearHead exports."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        folded = {
            "conv_weight": _array(self.conv.weight * scale[:, None, None, None]),
            "conv_bias": _array(self.norm.bias - self.norm.running_mean * scale),
        }
        return folded | self.linear.export(temperature)


HEADS = {"linear": LinearHead, "conv": ConvHead}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)
