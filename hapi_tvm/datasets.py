"""Labelled images in three splits, checked before any stage sees them.

``train`` fits the exits, ``calibrate`` feeds the search, and ``test`` is read by the report alone. What is
wrong with the images is a DataError that names the first offending index.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hapi_tvm.dataset_files import class_folders, read_class_folders, read_idx, read_npz
from hapi_tvm.errors import DataError
from hapi_tvm.hashing import digest

__all__ = ["Dataset", "Split", "check_dataset", "load_dataset"]

SPLITS = ("train", "calibrate", "test")
FASHION_MNIST_FULL = pathlib.Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_EMBEDDED = pathlib.Path(__file__).parent / "data" / "fashion_mnist.npz"

_FINITE_CHUNK_BYTES = 1 << 23

_Labelled = tuple[np.ndarray, np.ndarray]  # images, labels

_log = logging.getLogger("hapi_tvm")


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (0 to 255) or float32 [N, C, H, W], perhaps a memory map. labels: int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def scale(self) -> float:
        """Stored values are divided by it on their way into the network: 255 for uint8, 1 for float32."""
        return 255.0 if self.images.dtype == np.uint8 else 1.0

    def batches(
        self, size: int, order: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Copies of images, float32 [B, C, H, W], and labels, int32 [B].

        order: indices of the images wanted, int [M]; all, as stored, unless given. B is ``size``, or less
        in the last batch. Only one batch is ever held as float.
        """
        for start in range(0, len(self) if order is None else len(order), size):
            batch = slice(start, start + size) if order is None else order[start : start + size]
            images = np.array(self.images[batch], dtype=np.float32)
            if self.scale != 1:
                images /= np.float32(self.scale)
            yield images, np.array(self.labels[batch])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits that share no image. source: where the images came from, in words."""

    name: str
    source: str
    train: Split
    calibrate: Split
    test: Split

    @property
    def splits(self) -> dict[str, Split]:
        return {name: getattr(self, name) for name in SPLITS}

    @functools.cached_property
    def hash(self) -> str:
        """``digest`` of images and labels; the name and the source do not count."""
        return digest([(split.images, split.labels) for split in self.splits.values()])


def load_dataset(
    what: Dataset | tuple | str | os.PathLike[str],
    *,
    source: str = "auto",
    fractions: Sequence[float] = (0.5, 0.25, 0.25),
    seed: int = 0,
) -> Dataset:
    """Three checked splits of labelled images.

    what:
      - ``"fashion-mnist"``. source: "embedded" (8,000 / 5,000 / 5,000 images, all unseen by the embedded
        backbone), "full" (the 60,000 training images of Debian's dataset-fashion-mnist to train the exits,
        the same 5,000 and 5,000 to calibrate and test), or "auto": full where it is installed.
        Training the exits on images the backbone was fitted to is what its own last layer did too; the
        splits that choose thresholds and report accuracy stay unseen.
      - ``(images, labels)``: images uint8 or float32 [N, C, H, W] or [N, H, W], labels of any integer type;
      - an ``.npz`` of ``images`` and ``labels``, or of ``train_images``, ``train_labels``,
        ``calibrate_images`` and so on;
      - a folder of class folders of images of one size, or ``train``, ``calibrate`` and ``test`` of these;
        the sorted class names are the labels;
      - a ``Dataset``, which is only checked. Give memory maps this way, they are never read whole.
    fractions, seed: how images without splits are shuffled and cut into train, calibrate and test.
    Raises DataError.
    """
    if isinstance(what, Dataset):
        raw = {name: (split.images, split.labels) for name, split in what.splits.items()}
        return _checked(what.name, what.source, raw)
    if isinstance(what, tuple):
        if len(what) != 2:
            raise DataError(f"the data set is a tuple of {len(what)}; give (images, labels)")
        return _cut("arrays", "arrays in memory", *what, fractions, seed)
    if what == "fashion-mnist":
        return _fashion_mnist(source)
    if isinstance(what, str | os.PathLike) and (path := pathlib.Path(what)).exists():
        raw = _folder_splits(path) if path.is_dir() else _npz_splits(path)
        if isinstance(raw, tuple):
            return _cut(path.stem, str(path), *raw, fractions, seed)
        return _checked(path.stem, str(path), raw)
    given = repr(what) if isinstance(what, str | os.PathLike) else type(what).__name__
    raise DataError(
        f"data set {given} is no file and no folder; give 'fashion-mnist', (images, labels), "
        "an .npz file or a folder of class folders"
    )


def check_dataset(dataset: Dataset, input_shape: Sequence[int], classes: int) -> None:
    """Raise DataError unless every image fits the network and every label is one of its classes.

    input_shape: [1, C, H, W] or [C, H, W]. classes: length of the network's output.
    """
    shape = tuple(int(extent) for extent in input_shape)[-3:]
    for name, split in dataset.splits.items():
        if split.images.shape[1:] != shape:
            raise DataError(
                f"{name}.images[0] has shape {split.images.shape[1:]}, the network takes {shape} "
                f"(channels, height, width); {_shape_advice(split.images.shape[1:], shape)}"
            )
        if len(above := np.flatnonzero(split.labels >= classes)):
            raise DataError(
                f"{name}.labels[{above[0]}] = {split.labels[above[0]]}; the network has {classes} classes, "
                f"so labels lie in 0..{classes - 1}: take the model that was trained on these labels"
            )


def _shape_advice(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if (given[2], *given[:2]) == wanted:
        return "move the channels forward: images.transpose(0, 3, 1, 2)"
    if given[1:] == wanted[1:]:
        return f"convert them to {wanted[0]} channel(s)"
    return "resize them to what the model was trained on"


def _fashion_mnist(source: str) -> Dataset:
    if source not in ("auto", "full", "embedded"):
        raise DataError(f"source={source!r}; Fashion-MNIST comes from 'auto', 'full' or 'embedded'")
    installed = FASHION_MNIST_FULL.is_dir()
    if source == "full" and not installed:
        raise DataError(
            f"the full Fashion-MNIST is not installed at {FASHION_MNIST_FULL}; "
            "apt-get install dataset-fashion-mnist, or take source='embedded'"
        )
    if source == "embedded" or not installed:
        return _checked("fashion-mnist", "embedded", _npz_splits(FASHION_MNIST_EMBEDDED))
    images, labels = read_idx(FASHION_MNIST_FULL, "t10k")
    raw = {
        "train": read_idx(FASHION_MNIST_FULL, "train"),
        "calibrate": (images[0::2], labels[0::2]),
        "test": (images[1::2], labels[1::2]),
    }
    return _checked("fashion-mnist", f"full set in {FASHION_MNIST_FULL}", raw)


def _npz_splits(path: pathlib.Path) -> _Labelled | dict[str, _Labelled]:
    """What an ``.npz`` holds: images and labels, or these by split."""
    arrays = read_npz(path)
    if set(arrays) == {"images", "labels"}:
        return arrays["images"], arrays["labels"]
    wanted = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    if missing := [name for name in wanted if name not in arrays]:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'} and lacks {missing[0]}; "
            f"give images and labels, or {', '.join(wanted)}"
        )
    return {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in SPLITS}


def _folder_splits(folder: pathlib.Path) -> _Labelled | dict[str, _Labelled]:
    """What a folder holds: images and labels, or these by split."""
    classes = class_folders(folder)
    if not set(SPLITS) <= set(classes):
        return read_class_folders(folder, classes)
    classes = class_folders(folder / SPLITS[0])
    for split in SPLITS:
        if (found := class_folders(folder / split)) != classes:
            raise DataError(
                f"{folder / split} has the classes {found}, {folder / SPLITS[0]} has {classes}; "
                "every split needs the same class folders"
            )
    return {split: read_class_folders(folder / split, classes) for split in SPLITS}


def _checked(name: str, source: str, raw: Mapping[str, _Labelled]) -> Dataset:
    """A Dataset of three (images, labels), each checked and brought to the dtypes and ranks of ``Split``."""
    splits = {part: _split(f"{part}.", images, labels) for part, (images, labels) in raw.items()}
    train = splits["train"].images
    for part, split in splits.items():
        if (split.images.shape[1:], split.images.dtype) != (train.shape[1:], train.dtype):
            raise DataError(
                f"{part}.images[0] is {split.images.dtype} {split.images.shape[1:]}, "
                f"train.images[0] is {train.dtype} {train.shape[1:]}; all splits need one shape and dtype"
            )
    dataset = Dataset(name, source, **splits)
    sizes = " / ".join(f"{len(split):,}" for split in splits.values())
    _log.info("data set %s: %s, %s images to train / calibrate / test", name, source, sizes)
    return dataset


def _cut(name: str, source: str, images, labels, fractions: Sequence[float], seed: int) -> Dataset:
    """Shuffle and cut; the images are checked first, so that errors give the index the user knows."""
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0):
        raise DataError(f"fractions={tuple(fractions)} must be three positive numbers that sum to 1")
    whole = _split("", images, labels)
    ends = np.rint(np.cumsum(fractions[:2]) * len(whole)).astype(int)
    parts = np.split(np.random.default_rng(seed).permutation(len(whole)), ends)
    rows = dict(zip(SPLITS, parts, strict=True))
    raw = {part: (whole.images[row], whole.labels[row]) for part, row in rows.items()}
    return _checked(name, source, raw)


def _split(where: str, images, labels) -> Split:
    """A checked Split. where: what stands before ``images[...]`` in errors, such as "train."."""
    images, labels = _as_array(f"{where}images", images), _as_array(f"{where}labels", labels)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(
            f"{where}images has shape {images.shape}; give [N, C, H, W], or [N, H, W] for one channel"
        )
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"{where}images has dtype {images.dtype}; give uint8 (0 to 255) or float32: "
            "images.astype('float32')"
        )
    _check_labels(where, labels, len(images))
    _check_finite(f"{where}images", images)
    return Split(images, labels.astype(np.int32))


def _as_array(where: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        shapes = [np.shape(row) for row in value]
        first = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise DataError(
            f"{where}[{first}] has shape {shapes[first]}, {where}[0] has {shapes[0]}; all need one shape"
        ) from None
    if array.dtype.hasobject:
        raise DataError(f"{where} holds Python objects, not numbers; give one array of numbers")
    return array


def _check_labels(where: str, labels: np.ndarray, count: int) -> None:
    """labels [N] are whole numbers from 0 on, one for each of ``count`` images, of two classes or more."""
    name = f"{where}labels"
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(f"{name} has shape {labels.shape} for {count} images; give one label for each image")
    if count == 0:
        raise DataError(f"{where}images is empty; every split needs images: give more, or other fractions")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}[0] = {labels[0]!r} has dtype {labels.dtype}; labels are whole numbers: "
            "labels.astype('int32')"
        )
    outside = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
    if len(outside):
        raise DataError(f"{name}[{outside[0]}] = {labels[outside[0]]} is out of range; labels count from 0")
    if (labels == labels[0]).all():
        raise DataError(
            f"{name}: all {count} are {labels[0]}; every split needs two classes or more: "
            "add images of others"
        )


def _check_finite(name: str, images: np.ndarray) -> None:
    if images.dtype == np.uint8:
        return
    step = max(1, _FINITE_CHUNK_BYTES // images[:1].nbytes)
    for start in range(0, len(images), step):
        finite = np.isfinite(images[start : start + step])
        if not finite.all():
            within, *rest = (int(i) for i in np.argwhere(~finite)[0])
            row = start + within
            index = (row, *rest)
            place = ", ".join(str(i) for i in index)
            raise DataError(
                f"{name}[{place}] = {images[index]}; every value must be finite: drop or mend image {row}"
            )
