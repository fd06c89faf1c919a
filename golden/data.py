"""Data sets: handwritten digits without a file, `.npz` and IDX by path; the codes that the machine
is fed.

A pixel is kept as it is stored (8 bits), read as a float between 0 and 1, and fed as a code of 8
bits with 7 fraction bits, in the network's `input` coding:

- `unsigned`: `x = min(127, floor(pixel·128 + 0.5))`, 0…127;
- `signed`: `x = floor(pixel·255 + 0.5) - 128`, -128…127;
- `standardized`: `x = floor(32·(v - mean)/deviation + 0.5)`, saturated, of the stored value `v` with mean and
  deviation of that element over the training set; 0 where nothing ever changes.

Data stored as int8 is a signed code already, and its pixel is `x / 128`. Every backend, float
too, trains on the codes. Images are kept flat, in the order height, width, channel.
"""

import gzip
import hashlib
import sys
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from golden.checkpoint import UNREADABLE
from spec.errors import SpecError
from spec.network import Network

__all__ = ["Dataset", "load_dataset", "load_digits", "pixel_codes", "require_fit", "standardized_codes"]

CODE_FRACTION_BITS = 7
DIGITS_FULL_SCALE, BYTE_FULL_SCALE, CODE_FULL_SCALE = 16, 255, 128
STANDARD_DEVIATION = 32
DIGITS_TRAIN, DIGITS_SPLIT_SEED = 1437, 0
KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")
WHOLE_KEYS = ("x", "y")
WHOLE_TRAIN = (4, 5)
"""The part of a data set in one piece that is for training: its first 4/5, the rest for test."""
IDX_STEMS = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
IDX_UBYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Dataset:
    """Images with labels, split into training and test.

    `name`: for messages and reports; `raw_train`, `raw_test`: uint8 `(N, features)` as stored, or
    int8 codes; `full_scale`: the raw value of a pixel that is 1.0; `y_train`, `y_test`: int64
    `(N,)`, 0…classes-1; `classes`: the largest label + 1; `image_shape`: what one row of
    `raw_train` is, e.g. `(28, 28)`; `coding`: one of `spec.network.INPUTS`; int8 data is never
    `unsigned`.
    """

    name: str
    raw_train: np.ndarray
    y_train: np.ndarray
    raw_test: np.ndarray
    y_test: np.ndarray
    full_scale: int
    classes: int
    image_shape: tuple[int, ...]
    coding: str = "unsigned"

    @property
    def features(self) -> int:
        """Pixels of an image."""
        return self.raw_train.shape[1]

    @cached_property
    def x_train(self) -> np.ndarray:
        """Training codes, int8 `(N, features)`, 7 fraction bits."""
        return self._codes(self.raw_train)

    @cached_property
    def x_test(self) -> np.ndarray:
        """Test codes, int8 `(N, features)`, 7 fraction bits."""
        return self._codes(self.raw_test)

    def _codes(self, raw: np.ndarray) -> np.ndarray:
        if self.coding == "standardized":
            return standardized_codes(raw, self.raw_train)
        return pixel_codes(raw, self.full_scale, self.coding)

    @property
    def pixels_train(self) -> np.ndarray:
        """Training pixels, float64 `(N, features)`, 0…1; of int8 data -1…1."""
        return self.raw_train / self.full_scale

    @property
    def pixels_test(self) -> np.ndarray:
        """Test pixels, float64 `(N, features)`, 0…1; of int8 data -1…1."""
        return self.raw_test / self.full_scale

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over what training and test see: codes and little-endian int64 labels, in order."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{array.shape}".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def pixel_codes(raw: np.ndarray, full_scale: int, coding: str = "unsigned") -> np.ndarray:
    """int8 codes of uint8 pixels in exact integer arithmetic: `min(127, floor(128·p + 1/2))` where
    `p = raw/full_scale`, or `floor(255·p + 1/2) - 128` if `coding` is `signed`. int8 codes stay.
    """
    if raw.dtype == np.int8:
        return raw
    signed = coding == "signed"
    steps = BYTE_FULL_SCALE if signed else 1 << CODE_FRACTION_BITS
    rounded = (np.arange(256, dtype=np.int64) * (2 * steps) + full_scale) // (2 * full_scale)
    table = np.minimum(127, rounded - 128 if signed else rounded).astype(np.int8)
    return table[raw]


def standardized_codes(raw: np.ndarray, training: np.ndarray) -> np.ndarray:
    """int8 codes of `raw (N, features)`: 0 is an element's mean over `training`, 32 its deviation."""
    count, values = len(training), training.astype(np.int64)
    total = values.sum(axis=0)
    # Integers up to the root, so that every computer rounds alike.
    deviation = np.sqrt(count * (values**2).sum(axis=0) - total**2)
    offset = count * raw.astype(np.int64) - total
    codes = np.floor(STANDARD_DEVIATION * offset / np.where(deviation > 0, deviation, np.inf) + 0.5)
    return np.clip(codes, -128, 127).astype(np.int8)


def load_dataset(source: str | Path | None = None, network: Network | None = None) -> Dataset:
    """Reads a data set: None or `digits` the embedded digits, else a path.

    A path is a `.npz`, a folder with the four IDX files under their canonical names (plain or
    gzipped), or any one of those four. A `.npz` has Keras' keys, or all samples under `x` and `y`:
    then the first 4/5 are for training. The codes are those of the network's `input`; without
    `network`, signed for int8 data, else unsigned. Raises SpecError, one line, for everything that
    is not such a data set or, given `network`, does not fit it.
    """
    if source is None or str(source) == "digits":
        dataset = load_digits()
    else:
        path = Path(source)
        if not path.exists():
            raise SpecError(f"{path}: data must be an existing file or folder, or 'digits'")
        if path.is_dir() or _idx_key(path) is not None:
            dataset = _load_idx(path)
        elif path.suffix == ".npz":
            dataset = _load_npz(path)
        else:
            raise SpecError(
                f"{path}: data must be a .npz file, a folder of IDX files, or an IDX file "
                f"named like {IDX_STEMS['x_train']}[.gz]"
            )
    if network is not None:
        if dataset.raw_train.dtype != np.int8 or network.input == "standardized":
            dataset = replace(dataset, coding=network.input)
        require_fit(dataset, network)
    return dataset


def load_digits() -> Dataset:
    """scikit-learn's 1797 digits of 8x8 pixels (0…16), shuffled once for all: 1437 for training,
    360 for test.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    raw, labels = sklearn_digits(return_X_y=True)
    # RandomState, not Generator: its stream is promised never to change.
    order = np.random.RandomState(DIGITS_SPLIT_SEED).permutation(len(raw))
    raw, labels = raw[order].astype(np.uint8), labels[order].astype(np.int64)
    train, test = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    return Dataset(
        "digits", raw[train], labels[train], raw[test], labels[test], DIGITS_FULL_SCALE, 10, (8, 8)
    )


def require_fit(dataset: Dataset, network: Network) -> None:
    """Raises SpecError when images, their coding or labels do not fit the network."""
    shape = "x".join(map(str, dataset.image_shape))
    if dataset.features != network.features:
        raise SpecError(
            f"{dataset.name}: images must have the {network.features} features of network "
            f"{network.name}, got {dataset.features} ({shape})"
        )
    shapes = (dataset.image_shape, network.input_shape)
    if network.windowed and min(map(len, shapes)) > 1 and _map(shapes[0]) != _map(shapes[1]):
        wanted = "x".join(map(str, network.input_shape))
        raise SpecError(
            f"{dataset.name}: images must be {wanted} (height, width, channel) for network "
            f"{network.name}, got {shape}"
        )
    if dataset.coding != network.input:
        raise SpecError(
            f"{dataset.name}: codes must be {network.input}, the input of network {network.name}, "
            f"got {dataset.coding}"
        )
    if dataset.classes > network.classes:
        raise SpecError(
            f"{dataset.name}: labels must lie in 0…{network.classes - 1} for network "
            f"{network.name}, got {dataset.classes - 1}"
        )


def _map(shape: tuple[int, ...]) -> tuple[int, ...]:
    """An image's shape as height, width, channel: a picture of one channel may lack the last."""
    return shape if len(shape) > 2 else (*shape, 1)


def _load_npz(path: Path) -> Dataset:
    """A `.npz` with Keras' keys, or with all samples in `x` and `y`."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no archive")
        with np.load(path, allow_pickle=False) as archive:
            found = sorted(archive.files)
            whole = set(WHOLE_KEYS) <= set(found) and not set(KERAS_KEYS) <= set(found)
            keys = WHOLE_KEYS if whole else KERAS_KEYS
            arrays = {key: archive[key] for key in keys if key in found}
    except UNREADABLE as error:
        # NumPy's advice on Python objects, to load them all the same, would be a bad one here.
        why = "an array holds Python objects" if "pickle" in str(error) else _line(error)
        reason = f"must be a .npz of plain arrays, as numpy.savez writes it ({why})"
        raise SpecError(f"{path}: {reason}") from None
    if len(arrays) < len(keys):
        rule = f"keys must include {', '.join(KERAS_KEYS)} (or {', '.join(WHOLE_KEYS)})"
        raise SpecError(f"{path}: {rule}, got {', '.join(found) or 'none'}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise SpecError(f"{path}: {key} must be an array, as numpy.savez writes it")
    where = {key: f"{path}: {key}" for key in keys}
    if whole:
        arrays, where = _split(arrays, where)
    return _dataset(path, where, arrays)


def _split(arrays: dict[str, np.ndarray], where: dict[str, str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A data set in one piece, and where its parts came from, under Keras' keys."""
    parts, places = {}, {}
    for key, array in arrays.items():
        if array.ndim == 0 or len(array) < WHOLE_TRAIN[1]:
            raise SpecError(f"{where[key]}: must have {WHOLE_TRAIN[1]} samples or more, got shape {array.shape}")
        if len(array) != len(arrays["x"]):
            raise SpecError(f"{where[key]}: must have {len(arrays['x'])} labels, one an image, got {len(array)}")
        train = len(array) * WHOLE_TRAIN[0] // WHOLE_TRAIN[1]
        parts[f"{key}_train"], parts[f"{key}_test"] = array[:train], array[train:]
        places[f"{key}_train"] = places[f"{key}_test"] = where[key]
    return parts, places


def _load_idx(path: Path) -> Dataset:
    """The four IDX files of a folder, or beside the one named."""
    folder = path if path.is_dir() else path.parent
    found = {key: file for file in sorted(folder.iterdir()) if (key := _idx_key(file)) is not None}
    if not path.is_dir():
        found[str(_idx_key(path))] = path
    for key, stem in IDX_STEMS.items():
        if key not in found:
            raise SpecError(f"{folder}: must hold {stem} or {stem}.gz, got neither")
    arrays = {key: _read_idx(found[key]) for key in IDX_STEMS}
    return _dataset(folder, {key: str(found[key]) for key in IDX_STEMS}, arrays)


def _idx_key(path: Path) -> str | None:
    """Which part of a data set an IDX file's name says it is; `train-images.idx3-ubyte` is seen
    too.
    """
    name = path.name.removesuffix(".gz").replace(".idx", "-idx")
    return next((key for key, stem in IDX_STEMS.items() if stem == name), None)


def _read_idx(path: Path) -> np.ndarray:
    """One IDX file of unsigned bytes: 0, 0, type, dimensions, their sizes (big-endian u32), data."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(f"{path}: must be a readable IDX file ({_line(error)})") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise SpecError(
            f"{path}: IDX must begin with two zero bytes, got {content[:4].hex() or 'none'}"
        )
    kind, dimensions = content[2], content[3]
    if kind != IDX_UBYTE:
        raise SpecError(f"{path}: IDX type must be 0x08 (unsigned byte), got 0x{kind:02x}")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise SpecError(f"{path}: IDX header must have {start} bytes, got {len(content)}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    needed = int(np.prod(shape, dtype=object))
    if len(content) - start != needed:
        raise SpecError(
            f"{path}: IDX of shape {shape} must have {needed} data bytes, got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _dataset(path: Path, where: dict[str, str], arrays: dict[str, np.ndarray]) -> Dataset:
    """Checks the four arrays; `where` names each for messages."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        at_x, at_y = where[f"x_{part}"], where[f"y_{part}"]
        if x.dtype not in (np.uint8, np.int8):
            raise SpecError(f"{at_x}: dtype must be uint8 or int8, got {x.dtype}; {_conversion(x)}")
        if x.dtype != arrays["x_train"].dtype:
            raise SpecError(f"{at_x}: dtype must be the training images', {arrays['x_train'].dtype}, got {x.dtype}")
        if x.ndim < 2 or x.size == 0:
            raise SpecError(f"{at_x}: shape must be (images, pixels…), none empty, got {x.shape}")
        if y.dtype.kind not in "iu":
            raise SpecError(f"{at_y}: dtype must be an integer, got {y.dtype}")
        if y.shape not in ((len(x),), (len(x), 1)):
            raise SpecError(f"{at_y}: shape must be ({len(x)},), one label an image, got {y.shape}")
        if y.min() < 0:
            raise SpecError(f"{at_y}: labels must be 0 or more, got {y.min()}")
        if y.max() > 254:
            raise SpecError(
                f"{at_y}: labels must be 254 or less (255 is 'no label'), got {y.max()}"
            )
    image_shape = arrays["x_train"].shape[1:]
    if arrays["x_test"].shape[1:] != image_shape:
        raise SpecError(
            f"{where['x_test']}: images must have the training images' shape {image_shape}, "
            f"got {arrays['x_test'].shape[1:]}"
        )
    raw = {part: arrays[f"x_{part}"] for part in ("train", "test")}
    labels = {part: arrays[f"y_{part}"].reshape(-1).astype(np.int64) for part in ("train", "test")}
    signed = raw["train"].dtype == np.int8
    if not signed:
        _warn_if_faint(path, int(max(part.max() for part in raw.values())))
    return Dataset(
        str(path),
        raw["train"].reshape(len(raw["train"]), -1),
        labels["train"],
        raw["test"].reshape(len(raw["test"]), -1),
        labels["test"],
        CODE_FULL_SCALE if signed else BYTE_FULL_SCALE,
        int(max(labels["train"].max(), labels["test"].max())) + 1,
        tuple(image_shape),
        "signed" if signed else "unsigned",
    )


def _conversion(x: np.ndarray) -> str:
    """How images of another type become uint8."""
    if x.dtype.kind in "biuf" and x.size and 0 <= x.min() <= x.max() <= BYTE_FULL_SCALE:
        scaled = "(x * 255)" if x.max() <= 1 else "x"
        return f'convert with {scaled}{".round()" if x.dtype.kind == "f" else ""}.astype("uint8")'
    return "scale the pixels to 0 (black) ... 255 and save them as uint8"


def _warn_if_faint(path: Path, brightest: int) -> None:
    """Says on standard error that pixels use less than half of the scale: they may have another one."""
    if brightest > BYTE_FULL_SCALE // 2:
        return
    fix = f'if {brightest} is white, save them as (x * (255 / {brightest})).round().astype("uint8")'
    print(
        f"{path}: warning: no pixel is brighter than {brightest} of 255; {fix if brightest else 'all are black'}",
        file=sys.stderr,
    )


def _line(error: BaseException) -> str:
    """An exception as a part of one line."""
    return " ".join(str(error).split()) or type(error).__name__
