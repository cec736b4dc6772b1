#!/usr/bin/env python3
"""Tutorial: the embedded example on a 64-bit Arm board. It is compiled here, and tuned and measured there.

The board registers at a tracker, which this machine reaches too: `python -m tvm.exec.rpc_tracker` starts one.
Without a board, `scripts/emulated_board.py` runs one here, whose times are no board's.
"""

from __future__ import annotations

import argparse
import importlib.resources

import hapi_tvm as hapi
from hapi_tvm.progress import set_up_logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT")
    parser.add_argument("--key", required=True, help="what the boards are called at the tracker")
    parser.add_argument("--device", default="raspberry-pi/4b-aarch64", help="one of TVM's tags")
    parser.add_argument("--run", default="runs/build-arm")
    parser.add_argument("--database", default="runs/kernels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    set_up_logging()

    # A trained classifier, and labelled images, as in scripts/build_llvm.py.
    model = importlib.resources.files("hapi_tvm") / "data" / "resnet56_fashion_mnist.onnx"
    backbone = hapi.import_model(str(model))
    data = hapi.load_dataset("fashion-mnist", source="embedded")

    # Every board behind the key is such a device; with several, they share the work.
    target = hapi.targets.arm(args.tracker, args.key, device=args.device, threads=args.threads)

    # At most one point of accuracy, as fast as possible on the board.
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

    # The library is for the board: copy it there, and load it with hapi_tvm.load.
    print(f"{artifact.path}: {len(artifact.thresholds)} exits")


if __name__ == "__main__":
    main()
