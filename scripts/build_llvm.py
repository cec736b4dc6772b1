#!/usr/bin/env python3
"""Tutorial: the embedded example on this machine's CPU, in Python.

Every step can be changed: another model, your images, another SLA. ``scripts/demo`` does the same by
the command line.
"""

from __future__ import annotations

import argparse
import importlib.resources

import hapi_tvm as hapi
from hapi_tvm.progress import set_up_logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/build-llvm")
    parser.add_argument("--database", default="runs/kernels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    set_up_logging()

    # A trained classifier: an ONNX file, or a torch module with an example input.
    model = importlib.resources.files("hapi_tvm") / "data" / "resnet56_fashion_mnist.onnx"
    backbone = hapi.import_model(str(model))

    # Labelled images: a name, arrays, an .npz, or a folder of class folders.
    data = hapi.load_dataset("fashion-mnist", source="embedded")

    # The device. Kernels are tuned and measured on it, with so many threads.
    target = hapi.targets.llvm(threads=args.threads)

    # At most one point of accuracy, as fast as possible.
    artifact = hapi.build(
        backbone,
        data,
        target,
        sla=hapi.SLA(max_accuracy_drop=0.01),
        run_dir=args.run,
        trials=args.trials,
        epochs=args.epochs,
        spacing=0.05,
        database_dir=args.database,
    )

    answer = artifact.predict(data.test.images[0])
    print(f"label {answer.label}, confidence {answer.confidence:.3f}, left at {answer.exit_name}")


if __name__ == "__main__":
    main()
