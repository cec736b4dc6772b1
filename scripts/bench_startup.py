#!/usr/bin/env python3
"""How long an artifact takes from a fresh process to its answers. JSON on stdout, progress on stderr.

Every sample is a process of its own. ``import_ms``: to import ``hapi_tvm`` and TVM's runtime; ``load_ms``: to
load the library and prepare an image; ``first_run_ms``: the first inference; ``second_run_us``: the second;
``total_ms``: the first three together, without the start of Python itself. One more process runs before and is
not counted, so that files come from the page cache.

Give a library that was compiled here, or the name of a model of ``bench_models.py``, which is built without
tuning and without exits; that needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import hapi_tvm as hapi

COLUMNS = ("import_ms", "load_ms", "first_run_ms", "second_run_us", "total_ms")
TIMEOUT_S = 120

# What a sample runs; nothing is imported before the first clock but what Python itself needs.
SAMPLE = """
import sys, time
stamps_s = [time.perf_counter()]
import hapi_tvm
load = hapi_tvm.load  # this imports TVM
stamps_s.append(time.perf_counter())
import numpy
artifact = load(sys.argv[1])
inputs = artifact.prepare(numpy.zeros(artifact.input_shape, numpy.float32))
stamps_s.append(time.perf_counter())
for _ in range(2):
    artifact.run(*inputs)
    stamps_s.append(time.perf_counter())
print(*stamps_s)
"""


def sample(library: pathlib.Path, threads: int) -> dict[str, float]:
    """One process's times, by ``COLUMNS``."""
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, str(library)],
        env=os.environ | {"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    began_s, imported_s, loaded_s, first_s, second_s = map(float, done.stdout.split())
    return {
        "import_ms": 1e3 * (imported_s - began_s),
        "load_ms": 1e3 * (loaded_s - imported_s),
        "first_run_ms": 1e3 * (first_s - loaded_s),
        "second_run_us": 1e6 * (second_s - first_s),
        "total_ms": 1e3 * (first_s - began_s),
    }


def bench(library: pathlib.Path, threads: int, samples: int) -> dict[str, Any]:
    """The whole report, as it is printed: of each column the median and the quartiles over the samples."""
    sample(library, threads)
    rows = [sample(library, threads) for _ in range(samples)]
    report: dict[str, Any] = {"library_bytes": library.stat().st_size, "threads": threads, "samples": samples}
    for column in COLUMNS:
        first, median, third = statistics.quantiles([row[column] for row in rows], n=4, method="inclusive")
        report[column] = {"median": median, "quartiles": [first, third]}
    return report


def build_untuned(name: str, threads: int, folder: pathlib.Path) -> pathlib.Path:
    """A model of ``bench_models.MODELS`` as a library in ``folder``."""
    from bench_models import MODELS, classifier, export_onnx, image
    from hapi_tvm.backbone_build import compile_backbone

    model = MODELS[name]
    network, _ = classifier(model)
    backbone = hapi.import_model(export_onnx(network, image(model), folder / f"{name}.onnx"))
    target = hapi.targets.llvm(threads=threads)
    return compile_backbone(backbone, target, folder / f"{name}.so", folder / "kernels", trials=0).library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file that ends in .so, or a name such as resnet56")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10, help="processes, at least 2")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hapi-tvm-bench-") as folder:
        given = args.model.endswith(".so")
        library = pathlib.Path(args.model) if given else build_untuned(args.model, args.threads, pathlib.Path(folder))
        print(json.dumps({"model": args.model} | bench(library, args.threads, args.samples), indent=1))


if __name__ == "__main__":
    main()
