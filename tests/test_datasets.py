"""Splits, what load_dataset takes, and the rows of the bad-input table about images and labels."""

from __future__ import annotations

import logging
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from hapi_tvm import datasets
from hapi_tvm.dataset_files import read_idx
from hapi_tvm.datasets import SPLITS, Dataset, Split, check_dataset, load_dataset
from hapi_tvm.errors import DataError

needs_debian = pytest.mark.skipif(
    not datasets.FASHION_MNIST_FULL.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


Labelled = tuple[np.ndarray, np.ndarray]


def pictures(count: int, *, seed: int = 0, shape: tuple[int, ...] = (3, 4, 5)) -> Labelled:
    """uint8 images [N, *shape], all different, and labels that alternate between 0, 1 and 2."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % 3


def three_splits(**changed: Labelled) -> Dataset:
    raw = {name: pictures(6, seed=seed) for seed, name in enumerate(SPLITS)} | changed
    return Dataset("three", "a test", **{name: Split(*pair) for name, pair in raw.items()})


def write_folder(folder, images: np.ndarray, labels: np.ndarray, names: str = "abc") -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        pixels = image.transpose(1, 2, 0).squeeze()
        Image.fromarray(pixels).save(folder / names[label] / f"{index:03}.png")


# --- Split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_batches_hold_every_image_once_and_in_order(size):
    images, labels = pictures(7)
    batches = list(Split(images, labels.astype(np.int32)).batches(size))
    assert [len(y) for _, y in batches] == [min(size, 7 - start) for start in range(0, 7, size)]
    joined = np.concatenate([x for x, _ in batches])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, images.astype(np.float32) / 255)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels)


def test_float_images_are_fed_as_they_are_and_may_be_changed_by_whoever_reads_them():
    images = np.random.default_rng(0).normal(size=(5, 1, 2, 2)).astype(np.float32)
    kept = images.copy()
    for x, _ in Split(images, np.zeros(5, np.int32)).batches(2):
        x += 1
    np.testing.assert_array_equal(images, kept)


def test_a_memory_map_is_checked_hashed_and_streamed_without_being_held(tmp_path):
    raw = {}
    for seed, name in enumerate(SPLITS):
        images = np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, (600, 3, 64, 64))
        images[:] = np.random.default_rng(seed).random((600, 1, 1, 1), np.float32)
        raw[name] = Split(images, np.arange(600) % 2)
    whole_bytes = sum(split.images.nbytes for split in raw.values())
    tracemalloc.start()
    try:
        dataset = load_dataset(Dataset("mapped", "a test", **raw))
        check_dataset(dataset, (1, 3, 64, 64), 2)
        assert dataset.hash
        rows = sum(len(y) for split in dataset.splits.values() for _, y in split.batches(32))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 1800
    assert peak_bytes < whole_bytes / 3


# --- what load_dataset takes ---------------------------------------------------------------------


def test_arrays_are_cut_into_disjoint_splits_that_hold_everything():
    images, labels = pictures(100)
    dataset = load_dataset((images, labels))
    assert [len(split) for split in dataset.splits.values()] == [50, 25, 25]
    found = {}
    for split in dataset.splits.values():
        assert split.labels.dtype == np.int32
        found |= {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


def test_the_cut_depends_on_the_seed_and_on_nothing_else():
    arrays = pictures(60)
    assert load_dataset(arrays, seed=1).hash == load_dataset(arrays, seed=1).hash
    assert load_dataset(arrays, seed=1).hash != load_dataset(arrays, seed=2).hash


def test_grey_images_without_a_channel_axis_get_one():
    images, labels = pictures(40, shape=(4, 5))
    assert load_dataset((images, labels)).train.images.shape == (20, 1, 4, 5)


def test_npz_of_images_and_labels_equals_the_arrays(tmp_path):
    images, labels = pictures(40)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    assert load_dataset(str(tmp_path / "set.npz")).hash == load_dataset((images, labels)).hash


def test_npz_of_splits_keeps_them(tmp_path):
    dataset = load_dataset(three_splits())
    arrays = {f"{n}_images": s.images for n, s in dataset.splits.items()}
    arrays |= {f"{n}_labels": s.labels for n, s in dataset.splits.items()}
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    assert load_dataset(tmp_path / "set.npz").hash == dataset.hash


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_class_folders_equals_the_arrays(tmp_path, channels):
    images, labels = pictures(30, shape=(channels, 4, 5))
    write_folder(tmp_path / "set", images, labels)
    (tmp_path / "set" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "set" / ".cache").mkdir()
    order = np.argsort(labels, kind="stable")
    assert load_dataset(tmp_path / "set").hash == load_dataset((images[order], labels[order])).hash


def test_one_colour_image_makes_the_whole_folder_colour(tmp_path):
    grey, labels = pictures(30, shape=(1, 4, 5))
    write_folder(tmp_path / "set", grey, labels)
    write_folder(tmp_path / "set", *(part[:1] for part in pictures(1, shape=(3, 4, 5))))
    assert load_dataset(tmp_path / "set").train.images.shape[1:] == (3, 4, 5)


def test_folder_of_splits_keeps_them(tmp_path):
    dataset = load_dataset(three_splits())
    for name, split in dataset.splits.items():
        write_folder(tmp_path / name, split.images, split.labels)
    loaded = load_dataset(tmp_path)
    for name, split in dataset.splits.items():
        order = np.argsort(split.labels, kind="stable")
        np.testing.assert_array_equal(loaded.splits[name].images, split.images[order])
        np.testing.assert_array_equal(loaded.splits[name].labels, split.labels[order])


def test_the_hash_tells_apart_what_a_stage_would():
    base = load_dataset(three_splits())
    images, labels = pictures(6, seed=2)
    darker, other = images.copy(), labels.copy()
    darker[0, 0, 0, 0] ^= 1
    other[0] = 1
    assert load_dataset(three_splits(test=(images, labels))).hash == base.hash
    assert load_dataset(three_splits(test=(darker, labels))).hash != base.hash
    assert load_dataset(three_splits(test=(images, other))).hash != base.hash
    swapped = Dataset(base.name, base.source, base.train, base.test, base.calibrate)
    assert swapped.hash != base.hash


# --- Fashion-MNIST -------------------------------------------------------------------------------


def test_embedded_images_keep_their_promise_of_size():
    dataset = load_dataset("fashion-mnist", source="embedded")
    assert [len(split) for split in dataset.splits.values()] == [8000, 5000, 5000]
    assert {split.images.shape[1:] for split in dataset.splits.values()} == {(1, 28, 28)}
    assert all(set(split.labels) == set(range(10)) for split in dataset.splits.values())
    assert datasets.FASHION_MNIST_EMBEDDED.stat().st_size <= 10_000_000
    seen = [image.tobytes() for split in dataset.splits.values() for image in split.images]
    assert len(seen) - len(set(seen)) <= 5  # Fashion-MNIST itself repeats an image here and there


@needs_debian
def test_embedded_images_are_those_of_debian_that_the_backbone_did_not_see():
    embedded = load_dataset("fashion-mnist", source="embedded")
    for split, (part, rows) in {
        "train": ("train", slice(52_000, 60_000)),
        "calibrate": ("t10k", slice(0, None, 2)),
        "test": ("t10k", slice(1, None, 2)),
    }.items():
        images, labels = read_idx(datasets.FASHION_MNIST_FULL, part)
        np.testing.assert_array_equal(embedded.splits[split].images[:, 0], images[rows])
        np.testing.assert_array_equal(embedded.splits[split].labels, labels[rows])


@needs_debian
def test_auto_takes_the_full_set_where_it_is_installed_and_says_so(caplog):
    with caplog.at_level(logging.INFO, "hapi_tvm"):
        full = load_dataset("fashion-mnist")
    embedded = load_dataset("fashion-mnist", source="embedded")
    assert "full" in full.source and full.source in caplog.text
    assert len(full.train) == 60_000
    np.testing.assert_array_equal(full.train.images[52_000:], embedded.train.images)
    for name in ("calibrate", "test"):
        np.testing.assert_array_equal(full.splits[name].images, embedded.splits[name].images)
        np.testing.assert_array_equal(full.splits[name].labels, embedded.splits[name].labels)


def test_auto_takes_the_embedded_set_elsewhere_and_says_so(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "FASHION_MNIST_FULL", tmp_path / "absent")
    with caplog.at_level(logging.INFO, "hapi_tvm"):
        dataset = load_dataset("fashion-mnist")
    assert dataset.source == "embedded" and "embedded" in caplog.text
    with pytest.raises(DataError, match="not installed.*apt-get install dataset-fashion-mnist"):
        load_dataset("fashion-mnist", source="full")


@needs_debian
def test_a_truncated_full_set_is_named(monkeypatch, tmp_path):
    shutil.copytree(datasets.FASHION_MNIST_FULL, tmp_path / "set")
    monkeypatch.setattr(datasets, "FASHION_MNIST_FULL", tmp_path / "set")
    broken = tmp_path / "set" / "t10k-labels-idx1-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{re.escape(str(broken))}.*--reinstall"):
        load_dataset("fashion-mnist")


# --- bad input -----------------------------------------------------------------------------------


def refuses(match: str, what, **options) -> None:
    with pytest.raises(DataError, match=match):
        load_dataset(what, **options)


def floats(count: int = 12) -> Labelled:
    images, labels = pictures(count)
    return images.astype(np.float32), labels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 23])
def test_values_that_are_not_finite(value, chunk_bytes, monkeypatch):
    monkeypatch.setattr(datasets, "_FINITE_CHUNK_BYTES", chunk_bytes)
    images, labels = floats()
    images[9, 0, 0, 0] = np.nan
    images[7, 2, 1, 3] = value
    refuses(rf"^images\[7, 2, 1, 3\] = {value}; .*mend image 7$", (images, labels))
    refuses(rf"^test\.images\[7, 2, 1, 3\] = {value}; ", three_splits(
        train=floats(), calibrate=floats(), test=(images, labels)
    ))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4", bool])
def test_image_dtypes(dtype):
    images, labels = pictures(12)
    refuses(rf"^images has dtype {np.dtype(dtype)}; .*astype\('float32'\)$", (images.astype(dtype), labels))


@pytest.mark.parametrize("shape", [(60,), (3, 4, 5, 1), (0, 4, 5)])
def test_image_ranks(shape):
    _, labels = pictures(12)
    images = np.zeros((12, *shape), np.uint8)
    refuses(re.escape(f"images has shape {images.shape}; give [N, C, H, W]"), (images, labels))


def test_images_of_several_shapes():
    images = [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8), np.zeros((1, 5, 4), np.uint8)]
    refuses(r"^images\[2\] has shape \(1, 5, 4\), images\[0\] has \(1, 4, 4\)", (images, [0, 1, 0]))
    refuses(r"^images holds Python objects", (np.array(["a", None, 1], object), [0, 1, 0]))


def test_labels_of_another_length():
    images, labels = pictures(12)
    refuses(r"^labels has shape \(11,\) for 12 images", (images, labels[:-1]))
    refuses(r"^labels has shape \(12, 1\) for 12 images", (images, labels[:, None]))


@pytest.mark.parametrize("value", [-1, 2**31])
def test_labels_out_of_range(value):
    images, labels = pictures(12)
    labels[5], labels[8] = value, value
    refuses(rf"^labels\[5\] = {value} is out of range; labels count from 0$", (images, labels))


def test_labels_that_are_no_whole_numbers():
    images, labels = pictures(12)
    refuses(r"^labels\[0\] = .*0\.5.* has dtype float64; .*astype\('int32'\)$", (images, labels + 0.5))


def test_an_empty_split():
    images, labels = pictures(12)
    refuses(r"^images is empty; every split needs images", (images[:0], labels[:0]))
    refuses(r"^calibrate\.images is empty; ", three_splits(calibrate=(images[:0], labels[:0])))
    refuses(r"^test\.images is empty; .*other fractions$", (images, labels), fractions=(0.5, 0.49, 0.01))


def test_one_class_only():
    images, labels = pictures(12)
    refuses(r"^labels: all 12 are 2; every split needs two classes", (images, np.full(12, 2)))
    refuses(r"^train\.labels: all 12 are 0; ", three_splits(train=(images, labels * 0)))


def test_splits_that_do_not_fit_each_other():
    refuses(r"^test\.images\[0\] is uint8 \(3, 9, 9\), train\.images\[0\] is uint8 \(3, 4, 5\)",
            three_splits(test=pictures(6, shape=(3, 9, 9))))
    refuses(r"^calibrate\.images\[0\] is float32 ", three_splits(calibrate=floats(6)))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.4, 0.3), (1.2, -0.1, -0.1)])
def test_fractions(fractions):
    refuses(r"^fractions=.* must be three positive numbers that sum to 1$", pictures(12), fractions=fractions)


def test_what_is_no_data_set(tmp_path):
    refuses(r"^data set 'fashion_mnist' is no file.*'fashion-mnist'", "fashion_mnist")
    refuses(r"^data set list is no file", [1, 2])
    refuses(r"^the data set is a tuple of 3; give \(images, labels\)$", (1, 2, 3))
    refuses(r"^source='debian'; .*'auto', 'full' or 'embedded'$", "fashion-mnist", source="debian")
    refuses(r"has no class folders; ", tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_a_truncated_npz_is_named(tmp_path, keep):
    images, labels = pictures(40)
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=images, labels=labels)
    path.write_bytes(path.read_bytes()[:keep])
    refuses(rf"^{re.escape(str(path))} cannot be read as an \.npz", path)


def test_an_npz_of_other_arrays(tmp_path):
    images, labels = pictures(12)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
    refuses(r"holds train_images, train_labels and lacks calibrate_images; ", tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", images)
    refuses(r"x\.npy holds one array; ", tmp_path / "x.npy")


def test_an_npz_of_pickles_never_runs_them(tmp_path):
    ran = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return (type(ran).touch, (ran,))

    np.savez(tmp_path / "x.npz", images=np.array([Touch()] * 4, object), labels=np.arange(4))
    refuses("cannot be read as an .npz", tmp_path / "x.npz")
    assert not ran.exists()


def test_folders_of_images_that_do_not_fit(tmp_path):
    images, labels = pictures(12)
    write_folder(tmp_path / "set", images, labels)
    odd = tmp_path / "set" / "b" / "999.png"
    Image.new("RGB", (9, 7)).save(odd)
    refuses(rf"^{re.escape(str(odd))} has \(9, 7\) pixels, .*000\.png has \(5, 4\)", tmp_path / "set")
    odd.write_bytes((tmp_path / "set" / "b" / "001.png").read_bytes()[:60])
    refuses(rf"^{re.escape(str(odd))} cannot be read as an image", tmp_path / "set")
    Image.new("I;16", (5, 4)).save(odd)
    refuses(rf"^{re.escape(str(odd))} has pixels of mode I;16; give 8 bits", tmp_path / "set")
    odd.unlink()
    (tmp_path / "set" / "d").mkdir()
    refuses(r"d holds no image; remove the folder, or fill it$", tmp_path / "set")


def test_folders_of_splits_with_other_classes(tmp_path):
    for name in SPLITS:
        write_folder(tmp_path / name, *pictures(12), names="xyz" if name == "test" else "abc")
    refuses(r"test has the classes \['x', 'y', 'z'\], .*train has \['a', 'b', 'c'\]", tmp_path)


def test_images_and_labels_the_network_does_not_take():
    dataset = load_dataset(three_splits())
    check_dataset(dataset, (1, 3, 4, 5), 3)
    for shape, advice in {
        (1, 5, 3, 4): r"transpose\(0, 3, 1, 2\)$",
        (1, 1, 4, 5): r"convert them to 1 channel\(s\)$",
        (3, 8, 8): "resize them",
    }.items():
        with pytest.raises(DataError, match=rf"^train\.images\[0\] has shape \(3, 4, 5\), .*{advice}"):
            check_dataset(dataset, shape, 3)
    match = r"^train\.labels\[2\] = 2; the network has 2 classes, so labels lie in 0\.\.1:"
    with pytest.raises(DataError, match=match):
        check_dataset(dataset, (1, 3, 4, 5), 2)
