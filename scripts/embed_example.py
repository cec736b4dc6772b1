#!/usr/bin/env python3
"""Write the images of the embedded example: hapi_tvm/data/fashion_mnist.npz.

It holds what the backbone was not fitted to: 8,000 training images for the exits, and the 10,000 test
images, every other one to calibrate, the rest to test. The same input gives the same bytes.

Needs Debian's package ``dataset-fashion-mnist``.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from fashion_mnist import CALIBRATE, EXIT_TRAIN, TEST, read_idx

OWNERS = {"train": ("train", EXIT_TRAIN), "calibrate": ("t10k", CALIBRATE), "test": ("t10k", TEST)}
LIMIT_BYTES = 10_000_000


def arrays() -> dict[str, np.ndarray]:
    """<split>_images uint8 [N, 1, 28, 28] and <split>_labels int32 [N] of the three splits."""
    found = {}
    for split, (part, rows) in OWNERS.items():
        images, labels = read_idx(part)
        found[f"{split}_images"] = images[rows, None]
        found[f"{split}_labels"] = labels[rows].astype(np.int32)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("hapi_tvm/data/fashion_mnist.npz"))
    args = parser.parse_args()

    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays())
    size_bytes = args.out.stat().st_size
    if size_bytes > LIMIT_BYTES:
        raise SystemExit(f"{args.out} takes {size_bytes} bytes; the package embeds at most {LIMIT_BYTES}")
    print(f"{args.out}: {size_bytes} bytes")


if __name__ == "__main__":
    main()
