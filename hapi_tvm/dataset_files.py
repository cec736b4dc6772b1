"""Labelled images on disk: NPZ, folders of class folders, and MNIST's IDX. A DataError names the file."""

from __future__ import annotations

import gzip
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from hapi_tvm.errors import DataError

__all__ = ["class_folders", "read_class_folders", "read_idx", "read_npz"]

_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY_MODES = {"1", "L"}
_COLOUR_MODES = {"CMYK", "HSV", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` by name; objects are refused, so no code in the file ever runs."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.lib.npyio.NpzFile):
                return {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz ({error}); write it with numpy.savez") from None
    raise DataError(f"{path} holds one array; write it with numpy.savez(path, images=..., labels=...)")


def class_folders(folder: pathlib.Path) -> list[str]:
    """The names of the folders in ``folder``, sorted; hidden ones left out."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")


def read_class_folders(folder: pathlib.Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, C, H, W] and labels int32 [N]; label i is the folder ``classes[i]``.

    C is 1 where every image is grey, else 3; transparency is dropped. All images need one size.
    """
    files: list[tuple[pathlib.Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{folder / name} holds no image; remove the folder, or fill it")
        files += [(path, label) for path in found]
    if not files:
        raise DataError(f"{folder} has no class folders; put the images of a class into a folder of its name")
    (width, height), mode = _common_header([path for path, _ in files])
    images = np.empty((len(files), len(mode), height, width), np.uint8)
    for row, (path, _) in enumerate(files):
        pixels = np.asarray(_open_image(path, pixels=True).convert(mode))
        images[row] = pixels.reshape(height, width, len(mode)).transpose(2, 0, 1)
    return images, np.array([label for _, label in files], np.int32)


def read_idx(folder: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] and labels uint8 [N] of ``part``, "train" or "t10k", as Debian installs them."""
    return (
        _read_idx_file(folder / f"{part}-images-idx3-ubyte.gz", rank=3),
        _read_idx_file(folder / f"{part}-labels-idx1-ubyte.gz", rank=1),
    )


def _read_idx_file(path: pathlib.Path, rank: int) -> np.ndarray:
    """uint8 of ``rank`` axes. Bytes: 0, 0, 8 (uint8), rank; one big-endian uint32 an axis; the values."""
    try:
        data = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + rank}I", data)
        if magic != 0x0800 + rank:
            raise ValueError(f"magic number {magic}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); apt-get install --reinstall dataset-fashion-mnist"
        ) from None


def _common_header(paths: list[pathlib.Path]) -> tuple[tuple[int, int], str]:
    """The one (width, height), and the mode that holds them all: "L" or "RGB"."""
    first = _open_image(paths[0], pixels=False)
    mode = "L"
    for path in paths:
        header = _open_image(path, pixels=False)
        if header.size != first.size:
            raise DataError(
                f"{path} has {header.size} pixels, {paths[0]} has {first.size} (width, height); "
                "resize the images to what the model was trained on"
            )
        if header.mode not in _GREY_MODES:
            mode = "RGB"
    return first.size, mode


def _open_image(path: pathlib.Path, *, pixels: bool):
    """A Pillow image of at most 8 bits a channel, its pixels read or only its header; the file is closed."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if pixels:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); mend or remove it") from None
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"{path} has pixels of mode {image.mode}; give 8 bits a channel")
    return image
