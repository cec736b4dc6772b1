"""Fashion-MNIST as Debian's ``dataset-fashion-mnist`` installs it, and who owns which image."""

from __future__ import annotations

import gzip
import pathlib

import numpy as np

FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")

# The backbone is fitted to the first 52,000 training images; the example owns everything else.
BACKBONE_TRAIN = slice(0, 52_000)
EXIT_TRAIN = slice(52_000, 60_000)  # of the training file
CALIBRATE = slice(0, None, 2)  # of the test file
TEST = slice(1, None, 2)  # of the test file


def read_idx(part: str, folder: pathlib.Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels uint8 [N] of ``part``, "train" or "t10k"."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels
