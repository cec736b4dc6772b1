#!/usr/bin/env python3
"""Tutorial: the embedded example on one of NVIDIA's GPUs. Without a GPU at hand it is compiled all the same.

The design, its exits and thresholds, is found on this machine's CPU, as in scripts/build_llvm.py.
"""

from __future__ import annotations

import argparse
import importlib.resources

import hapi_tvm as hapi
from hapi_tvm.progress import set_up_logging
from hapi_tvm.targets.cuda_kernels import device_code


def main() -> None:
    embedded = importlib.resources.files("hapi_tvm") / "data" / "resnet56_fashion_mnist.onnx"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(embedded))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--arch", default="sm_90", help="of the GPU, such as sm_86")
    parser.add_argument("--run", default="runs/build-llvm")
    parser.add_argument("--database", default="runs/kernels")
    parser.add_argument("--library", default="runs/model_cuda.so")
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    set_up_logging()
    backbone = hapi.import_model(args.model)
    data = hapi.load_dataset(args.data, source="embedded")

    # A run that is finished already is taken as it is.
    on_cpu = hapi.build(
        backbone,
        data,
        hapi.targets.llvm(),
        sla=hapi.SLA(max_accuracy_drop=0.01),
        run_dir=args.run,
        trials=args.trials,
        epochs=args.epochs,
        spacing=0.05,
        database_dir=args.database,
    )

    # The same exits, with kernels for the GPU: machine code where nvcc is on this machine, else their source.
    target = hapi.targets.cuda(args.arch)
    compiled = hapi.port(args.run, backbone, target, args.library)
    print(f"{args.library}: {len(device_code(compiled).kernels)} kernels for {args.arch}")
    if not target.has_device:
        print("no GPU here: compiled, not run")
        return
    on_gpu = hapi.load(args.library)
    answers = [(on_cpu.predict(image), on_gpu.predict(image)) for image in data.test.images[:100]]
    print(f"{sum(cpu.exit == gpu.exit for cpu, gpu in answers)} of {len(answers)} images leave at the CPU's exit")


if __name__ == "__main__":
    main()
