"""Load a compiled artifact and ask it. Needs TVM's runtime only: no compiler, no torch."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.relax import VirtualMachine

from hapi_tvm.errors import ArtifactError
from hapi_tvm.fresh_name import fresh_name
from hapi_tvm.pool import VARIABLE
from hapi_tvm.processor import missing_flags

__all__ = ["Answer", "Artifact", "load", "read_manifest", "unloaded"]

FORMAT = 1  # of the manifest; a reader refuses any other
_WITHOUT_CUDA = "a library for a GPU is loaded where NVIDIA's driver and CUDA's runtime are: `nvidia-smi` shows the GPU"
# How the manifest begins, which lies in a library as it was written: ASCII, in one piece.
_MANIFEST_MARK = b'{"format": '
_LARGEST_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """label: index of the class. probabilities: float32 [K]. confidence: the largest of them.

    exit: index of the exit taken, the number of exits for the backbone's own end; exit_name: its name.
    """

    label: int
    probabilities: np.ndarray
    confidence: float
    exit: int
    exit_name: str


class Artifact:
    """A compiled early-exit classifier. Made by ``load``. Not for use by several threads at once.

    machine: None for one of another machine, made by ``unloaded``; to run it here raises ArtifactError. device: where
    its kernels run, None for the CPU.
    """

    def __init__(
        self,
        path: pathlib.Path,
        machine: VirtualMachine | None,
        manifest: Mapping[str, Any],
        device: tvm.runtime.Device | None = None,
    ):
        self.path = path
        self.device = device or tvm.cpu()
        self.manifest = manifest
        self.thresholds = np.array([placed["threshold"] for placed in manifest["exits"]], np.float32)
        self.input_shape = tuple(manifest["input_shape"])
        self._machine = machine
        self._names = [placed["name"] for placed in manifest["exits"]] + ["backbone"]

    def predict(self, image: np.ndarray, thresholds: Sequence[float] | None = None) -> Answer:
        """Classify one image.

        image: [C, H, W] or [1, C, H, W], float32 as the backbone takes it, or uint8, which is divided by
        255. thresholds: one for each exit, in place of the design's; infinity disables an exit.
        Raises ArtifactError where the shape, the dtype or a value does not fit.
        """
        probabilities, taken, confidence = self.run(*self.prepare(image, thresholds))
        row = probabilities.numpy()[0]
        index = int(taken.numpy())
        return Answer(int(row.argmax()), row, float(confidence.numpy()[0]), index, self._names[index])

    def prepare(
        self, image: np.ndarray, thresholds: Sequence[float] | None = None
    ) -> list[tvm.runtime.Tensor]:
        """Checked inputs of ``run``: the image on the device, thresholds on the host, which decides the exits."""
        image = np.asarray(image)
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / np.float32(255)
        if image.dtype != np.float32:
            raise ArtifactError(f"predict: the image is {image.dtype}; give float32, or uint8 in 0 to 255")
        if image.shape not in (self.input_shape, self.input_shape[1:]):
            raise ArtifactError(
                f"predict: the image has shape {list(image.shape)}; "
                f"{self.path.name} takes one of {list(self.input_shape)}"
            )
        if not np.isfinite(image).all():
            where = [int(i) for i in np.argwhere(~np.isfinite(image))[0]]
            raise ArtifactError(f"predict: image{where} is {image[tuple(where)]}; every value must be finite")
        inputs = [tvm.runtime.tensor(np.ascontiguousarray(image.reshape(self.input_shape)), self.device)]
        return inputs + self._prepared_thresholds(thresholds)

    def _prepared_thresholds(self, thresholds: Sequence[float] | None) -> list[tvm.runtime.Tensor]:
        chosen = self.thresholds if thresholds is None else np.asarray(thresholds, np.float32)
        if chosen.shape != self.thresholds.shape or np.isnan(chosen).any():
            raise ArtifactError(
                f"predict: thresholds are {chosen.tolist()}; {self.path.name} has {len(self.thresholds)} exits "
                "and takes one number for each"
            )
        return [tvm.runtime.tensor(chosen)] if len(chosen) else []

    def run(self, *inputs: tvm.runtime.Tensor) -> tuple[tvm.runtime.Tensor, ...]:
        """``main`` itself: probabilities [1, K], exit int32 [], confidence [1]."""
        return self._loaded["main"](*inputs)

    def function(self, name: str) -> Callable[..., Any]:
        """One part of the network, for a caller that routes by itself, against a deadline say.

        name: ``segment_<i>`` takes the tensor before it and returns the one behind it, the last one
        (probabilities [1, K], confidence [1]); ``exit_<i>`` takes what ``segment_<i>`` returned and
        returns such a pair.
        """
        try:
            return self._loaded[name]
        except AttributeError:
            raise ArtifactError(
                f"{self.path.name} has no function {name}; it has segment_00 to segment_{len(self.thresholds):02d}"
                + (f" and exit_00 to exit_{len(self.thresholds) - 1:02d}" if len(self.thresholds) else "")
            ) from None

    @property
    def _loaded(self) -> VirtualMachine:
        if self._machine is None:
            raise ArtifactError(
                f"{self.path}: compiled for {self.manifest['target']}, which is another machine: copy the file there "
                f"and run `hapi-tvm predict {self.path.name} INPUT.npy`"
            )
        return self._machine


def load(path: str | os.PathLike[str]) -> Artifact:
    """Load ``model.so``.

    One that was compiled for several threads sets ``TVM_NUM_THREADS``, which sizes the pool that TVM makes with the
    first parallel kernel, unless it is set already. Raises ArtifactError for a file that is missing, no library, none
    of ours, or compiled for instructions that this processor lacks, or for a GPU that this machine lacks.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; build one with `hapi-tvm build`")
    try:
        with fresh_name(path) as link:
            # ``tvm.runtime.load_module`` (0.27) would resolve the link.
            library = tvm_ffi.load_module(str(link))
        # The manifest needs no device, and says which one the rest needs.
        machine = VirtualMachine(library, tvm.cpu())
    except Exception as error:  # the loader raises RuntimeError, InternalError or OSError
        first = str(error).strip().splitlines()[-1]
        hint = f"; {_WITHOUT_CUDA}" if "cuda" in first.lower() else _made_for(path)
        raise ArtifactError(f"{path}: not a library that can be loaded here ({first}){hint}") from error
    try:
        manifest = json.loads(machine["hapi_manifest"]())
        _check_format(path, manifest)
    except (AttributeError, ValueError) as error:
        raise ArtifactError(f"{path}: a library, but it carries no hapi_tvm manifest") from error
    if missing := missing_flags(manifest.get("needed_flags", ())):
        raise ArtifactError(
            f"{path}: compiled for {manifest['target']}, with instructions that this processor lacks: "
            f"{', '.join(missing)}. Build it for this processor, or for any with mcpu='generic'"
        )
    if (threads := manifest.get("threads", 1)) > 1:
        os.environ.setdefault(VARIABLE, str(threads))
    if manifest.get("device") != "cuda":
        return Artifact(path, machine, manifest)
    device = tvm.cuda(0)
    if not device.exist:
        raise ArtifactError(f"{path}: compiled for {manifest['target']}, and no GPU is found here; {_WITHOUT_CUDA}")
    return Artifact(path, VirtualMachine(library, device), manifest, device)


def unloaded(path: str | os.PathLike[str]) -> Artifact:
    """An artifact of another machine: what it says of itself can be read, and it runs there. Raises ArtifactError."""
    return Artifact(pathlib.Path(path), None, read_manifest(path))


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a library says of itself, whatever machine it is for: it is read, and not loaded.

    Raises ArtifactError for a file that is missing or has no manifest of this format.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; build one with `hapi-tvm build`")
    data = path.read_bytes()
    start = data.find(_MANIFEST_MARK)
    while start >= 0:
        text = data[start : start + _LARGEST_MANIFEST_BYTES].decode("ascii", errors="replace")
        try:
            manifest, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            start = data.find(_MANIFEST_MARK, start + 1)
            continue
        _check_format(path, manifest)
        return manifest
    raise ArtifactError(f"{path}: it carries no hapi_tvm manifest; build one with `hapi-tvm build`")


def _check_format(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    if (found := manifest.get("format")) != FORMAT:
        raise ArtifactError(f"{path}: manifest of format {found}; this version reads {FORMAT}: build it again")


def _made_for(path: pathlib.Path) -> str:
    try:
        return f"; it is made for {read_manifest(path)['target']}: run it there"
    except (ArtifactError, KeyError):
        return ""
