"""Data sets: codes, the embedded digits, every file format, and every refusal in one line."""

import gzip
import hashlib
import struct
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from golden.data import IDX_STEMS, load_dataset, load_digits, pixel_codes, require_fit, standardized_codes
from spec.errors import SpecError
from spec.network import Convolution, FullyConnected, Network, Recipe

PINNED_DIGITS = "3166c6a3e6d3e3bd6d840c9bf94f217f0ef6e614b530ac67174e06c8234673d4"
SHAPES = {"x_train": (6, 3, 4), "y_train": (6,), "x_test": (4, 3, 4), "y_test": (4,)}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A small data set of 3x4 images and labels 0…4; all pixel values at the ends of their range too."""
    random = np.random.default_rng(1)
    arrays = {key: random.integers(0, 256, shape, dtype=np.uint8) for key, shape in SHAPES.items()}
    arrays["x_train"][0, 0, :2] = 0, 255
    for key in ("y_train", "y_test"):
        arrays[key] %= 5
    arrays["y_train"][0] = 4
    return arrays


def network(features: int, classes: int) -> Network:
    return Network("net", (features,), classes, "walsh", (FullyConnected(classes),), Recipe(6, 6))


def convolutional(shape: tuple[int, ...], classes: int, coding: str = "signed") -> Network:
    layers = (Convolution(2, (2, 2), (1, 1)), FullyConnected(classes))
    return Network("conv", shape, classes, "walsh", layers, Recipe(6, 6), input=coding)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(folder: Path, arrays: dict[str, np.ndarray], gzipped: bool = False) -> Path:
    for key, stem in IDX_STEMS.items():
        content = idx(arrays[key])
        name = f"{stem}.gz" if gzipped else stem
        (folder / name).write_bytes(gzip.compress(content, mtime=0) if gzipped else content)
    return folder


def refused(path: Path, network: Network | None = None) -> str:
    """The message of the refusal, which must be one line that names the file."""
    with pytest.raises(SpecError) as caught:
        load_dataset(path, network)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("full_scale", [16, 255])
def test_codes_are_the_rounded_pixels(full_scale: int) -> None:
    raw = np.arange(full_scale + 1, dtype=np.uint8)
    exact = [
        min(127, (Fraction(int(value), full_scale) * 128 + Fraction(1, 2)).__floor__())
        for value in raw
    ]
    codes = pixel_codes(raw, full_scale)
    assert codes.dtype == np.int8
    assert codes.tolist() == exact
    assert (codes[0], codes[-1]) == (0, 127)


@pytest.mark.parametrize("full_scale", [16, 255])
def test_signed_codes_are_the_rounded_pixels_from_the_middle(full_scale: int) -> None:
    raw = np.arange(full_scale + 1, dtype=np.uint8)
    exact = [(Fraction(int(value), full_scale) * 255 + Fraction(1, 2)).__floor__() - 128 for value in raw]
    codes = pixel_codes(raw, full_scale, "signed")
    assert codes.dtype == np.int8
    assert codes.tolist() == exact
    assert (codes[0], codes[-1]) == (-128, 127)
    if full_scale == 255:
        assert codes.tolist() == list(range(-128, 128))


def test_digits_are_split_the_same_way_for_ever() -> None:
    digits = load_digits()
    assert digits.x_train.shape == (1437, 64) and digits.x_test.shape == (360, 64)
    assert digits.x_train.dtype == np.int8 and digits.y_train.dtype == np.int64
    assert (digits.features, digits.classes) == (64, 10)
    assert np.array_equal(digits.x_train, np.minimum(digits.raw_train * 8.0, 127))
    assert np.array_equal(digits.pixels_test * 16, digits.raw_test)
    assert digits.sha256 == PINNED_DIGITS
    # Every class is on both sides, and together they are the whole set.
    assert set(digits.y_test.tolist()) == set(range(10))
    both = np.sort(np.concatenate([digits.y_train, digits.y_test]))
    assert np.bincount(both).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_hash_sees_labels_and_order(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    hashes = set()
    for change in ("nothing", "label", "order"):
        if change == "label":
            arrays["y_test"][0] = (arrays["y_test"][0] + 1) % 5
        if change == "order":
            arrays["x_train"] = arrays["x_train"][::-1]
        np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)
        hashes.add(load_dataset(tmp_path / "d.npz").sha256)
    assert len(hashes) == 3
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in hashes)


@pytest.mark.parametrize("form", ["npz", "folder", "gzipped folder", "file", "gzipped file"])
def test_all_formats_give_the_same(
    form: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    if form == "npz":
        path = tmp_path / "data.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
    else:
        path = write_idx(tmp_path, arrays, gzipped="gzipped" in form)
        if form.endswith("file"):
            path = next(path.glob("t10k-labels*"))
    dataset = load_dataset(path, network(12, 5))
    assert dataset.image_shape == (3, 4)
    assert dataset.classes == 5
    for part in ("train", "test"):
        raw = arrays[f"x_{part}"].reshape(-1, 12)
        assert np.array_equal(getattr(dataset, f"raw_{part}"), raw)
        assert np.array_equal(getattr(dataset, f"x_{part}"), pixel_codes(raw, 255))
        assert np.array_equal(getattr(dataset, f"pixels_{part}"), raw / 255)
        assert np.array_equal(getattr(dataset, f"y_{part}"), arrays[f"y_{part}"])


def test_labels_in_a_column_are_taken(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz", allow_pickle=False, **{**arrays, "y_train": arrays["y_train"][:, None]}
    )
    assert np.array_equal(load_dataset(tmp_path / "d.npz").y_train, arrays["y_train"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, "x_train, y_train, x_test, y_test"),
        ({"x_train": np.zeros((6, 3, 4))}, "x_train: dtype must be uint8 or int8, got float64"),
        ({"x_train": np.zeros(6, np.uint8)}, "x_train: shape must be"),
        ({"x_train": np.zeros((0, 3, 4), np.uint8), "y_train": np.zeros(0, int)}, "none empty"),
        ({"y_train": np.zeros(6)}, "y_train: dtype must be an integer, got float64"),
        ({"y_train": np.zeros(5, int)}, "y_train: shape must be (6,)"),
        ({"y_test": np.array([0, 1, -1, 2])}, "y_test: labels must be 0 or more, got -1"),
        ({"y_test": np.array([0, 1, 255, 2])}, "y_test: labels must be 254 or less"),
        ({"x_test": np.zeros((4, 4, 4), np.uint8)}, "x_test: images must have"),
    ],
)
def test_a_wrong_npz_is_refused(
    change: dict, words: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    arrays = {key: value for key, value in {**arrays, **change}.items() if value is not None}
    np.savez(path, allow_pickle=False, **arrays)
    message = refused(path)
    assert message.startswith(str(path)) and words in message


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for content in (b"", b"no archive", b"PK\3\4 cut"):
        path.write_bytes(content)
        assert refused(path) == f"{path}: must be a .npz of plain arrays, as numpy.savez writes it (it is no archive)"
    np.savez(path, x_train=np.array([{}], dtype=object), y_train=0, x_test=0, y_test=0)
    message = refused(path)
    assert message.startswith(str(path)) and "Python objects" in message and "pickle" not in message
    with zipfile.ZipFile(path, "w") as archive:
        for key in SHAPES:
            archive.writestr(key, "text")
    assert refused(path) == f"{path}: x_train must be an array, as numpy.savez writes it"
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    assert "it is no archive" in refused(path)


def test_a_wrong_path_is_refused(tmp_path: Path) -> None:
    assert "existing" in refused(tmp_path / "nowhere.npz")
    (tmp_path / "data.csv").write_text("1,2\n")
    assert "must be a .npz file" in refused(tmp_path / "data.csv")
    assert IDX_STEMS["x_train"] in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "two zero bytes"),
        (b"\x89PNG", "two zero bytes"),
        (idx(np.zeros((6, 3, 4), np.uint8), kind=0x0D), "must be 0x08 (unsigned byte), got 0x0d"),
        (b"\0\0\x08\x03\0\0\0\x06", "header must have 16 bytes, got 8"),
        (idx(np.zeros((6, 3, 4), np.uint8))[:-1], "must have 72 data bytes, got 71"),
        (idx(np.zeros((6, 3, 4), np.uint8)) + b"\0", "must have 72 data bytes, got 73"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "data bytes, got 0"),
        (gzip.compress(idx(np.zeros((6, 3, 4), np.uint8)), mtime=0)[:-9], "readable IDX"),
        (b"\x1f\x8bnot gzip", "readable IDX"),
    ],
    # Names of their own: contents would be unreadable, and a gzip header holds the time.
    ids=["empty", "picture", "kind", "header", "short", "long", "huge", "cut", "not-gzip"],
)
def test_a_wrong_idx_file_is_refused(
    content: bytes, words: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = write_idx(tmp_path, arrays) / IDX_STEMS["x_train"]
    path.write_bytes(content)
    message = refused(tmp_path)
    assert message.startswith(str(path)) and words in message


def test_data_must_fit_the_network(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, **arrays)
    assert "must have the 13 features of network net, got 12 (3x4)" in refused(path, network(13, 5))
    assert "labels must lie in 0…3 for network net, got 4" in refused(path, network(12, 4))
    load_dataset(path, network(12, 200))
    with pytest.raises(SpecError, match="784 features"):
        load_dataset("digits", network(784, 10))


def test_pixels_are_coded_as_the_network_says(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, **arrays)
    unsigned, signed = (load_dataset(path, convolutional((3, 4, 1), 5, coding)) for coding in ("unsigned", "signed"))
    raw = arrays["x_train"].reshape(6, 12)
    assert np.array_equal(unsigned.x_train, pixel_codes(raw, 255))
    assert np.array_equal(signed.x_train, raw.astype(int) - 128)
    assert signed.x_train.dtype == signed.x_test.dtype == np.int8
    assert np.array_equal(signed.pixels_test, unsigned.pixels_test)
    assert unsigned.sha256 == load_dataset(path).sha256 != signed.sha256
    for dataset, coding in ((unsigned, "signed"), (signed, "unsigned")):
        with pytest.raises(SpecError, match=f"codes must be {coding}, the input of network conv, got"):
            require_fit(dataset, convolutional((3, 4), 5, coding))


def test_images_with_channels_are_flattened_height_width_channel(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    colours = {key: value.reshape(len(value), 3, 2, 2) if key[0] == "x" else value for key, value in arrays.items()}
    np.savez(path, allow_pickle=False, **colours)
    dataset = load_dataset(path, convolutional((3, 2, 2), 5))
    assert dataset.image_shape == (3, 2, 2)
    assert dataset.raw_train[4, (1 * 2 + 0) * 2 + 1] == colours["x_train"][4, 1, 0, 1]
    rule = "images must be 2x2x3 (height, width, channel) for network conv, got 3x2x2"
    assert rule in refused(path, convolutional((2, 2, 3), 5))
    assert "images must be 3x4 (height" in refused(path, convolutional((3, 4), 5))
    # A fully connected layer sees no shape.
    load_dataset(path, network(12, 5))


@pytest.mark.parametrize("form", ["one piece", "two parts"])
def test_signed_codes_in_a_file_stay(form: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x = np.random.default_rng(2).integers(-128, 128, (11, 3, 4)).astype(np.int8)
    x[0, 0, :2] = -128, 127
    y = (np.arange(11) % 5).astype(np.uint8)
    if form == "one piece":
        np.savez(path, allow_pickle=False, x=x, y=y)
    else:
        np.savez(path, allow_pickle=False, x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:])
    for dataset in (load_dataset(path), load_dataset(path, convolutional((3, 4, 1), 5))):
        # Four fifths of 11 are 8.
        assert np.array_equal(dataset.x_train, x[:8].reshape(8, 12))
        assert np.array_equal(dataset.x_test, x[8:].reshape(3, 12))
        assert np.array_equal(dataset.pixels_test, x[8:].reshape(3, 12) / 128)
        assert (dataset.y_train.tolist(), dataset.y_test.tolist()) == (y[:8].tolist(), y[8:].tolist())
        assert (dataset.image_shape, dataset.classes, dataset.coding) == ((3, 4), 5, "signed")
    assert "codes must be unsigned, the input of network net, got signed" in refused(path, network(12, 5))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((4, 3, 4), np.int8), np.zeros(4, int), "x: must have 5 samples or more, got shape (4, 3, 4)"),
        (np.zeros((), np.int8), np.zeros(4, int), "x: must have 5 samples or more, got shape ()"),
        (np.zeros((9, 3, 4), np.int8), np.zeros(8, int), "y: must have 9 labels, one an image, got 8"),
        (np.zeros((9, 3, 4), np.int16), np.zeros(9, int), "x: dtype must be uint8 or int8, got int16"),
        (np.zeros(9, np.int8), np.zeros(9, int), "x: shape must be"),
        (np.zeros((9, 3, 4), np.int8), np.zeros(9), "y: dtype must be an integer, got float64"),
        (np.zeros((9, 3, 4), np.int8), np.zeros((9, 2), int), "y: shape must be (7,), one label an image"),
        (np.zeros((9, 3, 4), np.int8), np.array([0] * 8 + [255]), "y: labels must be 254 or less"),
    ],
)
def test_a_wrong_npz_in_one_piece_is_refused(x: np.ndarray, y: np.ndarray, words: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, x=x, y=y)
    message = refused(path)
    assert message.startswith(str(path)) and words in message


def test_a_file_with_half_the_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, x=np.zeros((9, 3, 4), np.int8))
    assert refused(path) == f"{path}: keys must include x_train, y_train, x_test, y_test (or x, y), got x"


def test_training_and_test_must_be_of_one_kind(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, **{**arrays, "x_test": arrays["x_test"].astype(np.int8)})
    assert "x_test: dtype must be the training images', uint8, got int8" in refused(path)


@pytest.mark.parametrize(
    ("x", "fix"),
    [
        (np.full((9, 12), 0.5), 'convert with (x * 255).round().astype("uint8")'),
        (np.full((9, 12), 200.5, np.float32), 'convert with x.round().astype("uint8")'),
        (np.full((9, 12), 200), 'convert with x.astype("uint8")'),
        (np.full((9, 12), True), 'convert with (x * 255).astype("uint8")'),
        (np.full((9, 12), -0.5), "scale the pixels to 0 (black) ... 255"),
        (np.full((9, 12), np.nan), "scale the pixels to 0 (black) ... 255"),
        (np.full((9, 12), "1"), "scale the pixels to 0 (black) ... 255"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_images_of_another_type_are_refused_with_what_to_do(x: np.ndarray, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, x=x, y=np.zeros(9, int))
    assert f"{path}: x: dtype must be uint8 or int8, got {x.dtype}; {fix}" in refused(path)
    if fix.startswith("convert"):
        np.savez(path, allow_pickle=False, x=eval(fix.removeprefix("convert with ")), y=np.zeros(9, int))
        load_dataset(path)


@pytest.mark.parametrize(
    ("brightest", "said"),
    [
        (255, ""),
        (128, ""),
        (127, 'if 127 is white, save them as (x * (255 / 127)).round().astype("uint8")'),
        (16, 'if 16 is white, save them as (x * (255 / 16)).round().astype("uint8")'),
        (0, "all are black"),
    ],
)
def test_faint_images_are_trained_with_a_warning(
    brightest: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "data.npz"
    x = np.zeros((9, 12), np.uint8)
    x[-1, 3] = brightest  # a test image
    np.savez(path, allow_pickle=False, x=x, y=np.zeros(9, int))
    load_dataset(path)
    line = f"{path}: warning: no pixel is brighter than {brightest} of 255; {said}\n"
    assert capsys.readouterr().err == (line if said else "")
    if brightest and said:
        np.savez(path, allow_pickle=False, x=eval(said.split(" as ")[1]), y=np.zeros(9, int))
        assert load_dataset(path).x_test.max() == 127
        assert capsys.readouterr().err == ""
    # Codes have their scale in them, and the digits are known to be 0 to 16.
    np.savez(path, allow_pickle=False, x=np.minimum(x, 16).astype(np.int8), y=np.zeros(9, int))
    load_dataset(path)
    load_dataset()
    assert capsys.readouterr().err == ""


def test_standardized_codes_have_the_mean_and_deviation_of_training() -> None:
    random = np.random.default_rng(5)
    training = (random.normal(60.0, [0.0, 1.0, 3.0, 9.0], (400, 4))).round().astype(np.int8)
    test = training[:50] + np.array([9, 40, 0, 0], np.int8)
    codes = standardized_codes(training, training)
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    exact = 32 * (training[:, 1:] - mean[1:]) / deviation[1:]
    assert np.array_equal(codes[:, 1:], np.clip(np.floor(exact + 0.5), -128, 127))
    assert not codes[:, 0].any() and not standardized_codes(test, training)[:, 0].any()
    # The test set is coded by what training saw; what lies outside saturates.
    assert (standardized_codes(test, training)[:, 1] == 127).all()
    assert np.array_equal(standardized_codes(test, training)[:, 2:], codes[:50, 2:])


def test_int8_data_is_standardized_when_the_network_asks(tmp_path: Path) -> None:
    raw = np.random.default_rng(6).integers(70, 90, (40, 3, 4, 1)).astype(np.int8)
    path = tmp_path / "mfcc.npz"
    np.savez(path, x=raw, y=np.arange(40) % 5)
    dataset = load_dataset(path, convolutional((3, 4, 1), 5, "standardized"))
    assert np.array_equal(dataset.x_train, standardized_codes(raw[:32].reshape(32, -1), raw[:32].reshape(32, -1)))
    assert abs(dataset.x_train.mean()) < 1 < 20 < dataset.x_train.std()
